"""What a search rests on, against oracles: errors, predictions, savings, growth to a budget."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import search

from sinkjax import SinkMask, specialize
from sinkjax.accounts.formulas import predict, total
from sinkjax.accounts.savings import Workload, path_savings
from sinkjax.instruments.compare import compare
from sinkjax.instruments.judge import Judge
from sinkjax.instruments.own_errors import mean_outputs, own_errors
from sinkjax.instruments.sensitivity import Prediction, predict_moves
from sinkjax.instruments.tasks import Questions
from sinkjax.masks.choose import by_ranking
from sinkjax.masks.paths import Full, Sink, Window
from sinkjax.studies.costs import part_means, parts_up_to
from sinkjax.studies.search.budget import make_moves, rank_moves, shrinkage, spend
from sinkjax.studies.search.grow import Answers, SearchSettings
from sinkjax.testing.oracle import apply_pattern, attention_scores, head_pattern

pytestmark = pytest.mark.quick

PATHS = (Sink("mean"), Sink("first"), Window(1, 4), Window(0, 15))


@pytest.fixture(scope="module")
def model():
    return tiny.make(seed=3)


@pytest.fixture(scope="module")
def excerpts(model):
    return np.asarray(tiny.tokens_of(model, (6, 16)))


@pytest.fixture(scope="module")
def fills(model, excerpts):
    return mean_outputs(model, excerpts)


@pytest.fixture(scope="module")
def judge(model, excerpts, fills):
    return Judge(model, excerpts, fills=fills)


def dense_layer(layer, x, context, path):
    """The residual after a layer of heads on one path, without means, and their [B, T, N, H]."""

    def attend(q, k, v):
        scores = attention_scores(q, k, layer.attention.score_cap)
        patterns = [head_pattern(path, scores[:, n], {}) for n in range(q.shape[2])]
        outputs = apply_pattern(jnp.stack(patterns, axis=1), v)
        return outputs, outputs

    x, outputs = layer.attend(x, context, attend)
    return layer.feed_forward(x), outputs


def residual(layer, x, context, outputs):
    """The residual after attention of these outputs, float64 [B, T, D]."""
    return np.asarray(layer.attend(x, context, lambda *qkv: (outputs, None))[0], np.float64)


def ragged(starts, stop=16):
    """Positions that count of six excerpts of 16 tokens: of each from a start on."""
    at = np.arange(16)
    return (at >= np.resize(starts, 6)[:, None]) & (at < stop)


@pytest.mark.parametrize(
    ("scored", "shape"),
    [
        (ragged([1]), {}),
        (ragged([12]), {"outer_norms": True, "norm_offset": 1.0}),
        (ragged([9, 4, 12], stop=14), {"score_cap": 0.5, "residual_scale": 0.2}),
        (ragged([1]), {"outer_norms": True, "output_bias": True, "inner_norms": False}),
    ],
)
def test_errors_and_means_are_those_of_dense_attention(excerpts, scored, shape):
    """An error is of what attention adds, normed or not, with one head alone on the path."""
    model = tiny.make(seed=3, **shape)
    fills = mean_outputs(model, excerpts)
    errors = own_errors(model, excerpts, PATHS, fills=fills, scored=scored)
    x, context = model.enter(jnp.asarray(excerpts))
    for index, layer in enumerate(model.layers):
        after, full = dense_layer(layer, x, context, Full())
        means = np.asarray(full)[:, 1:].mean(axis=(0, 1))
        np.testing.assert_allclose(fills[index], means, atol=1e-5)
        for path, error in zip(PATHS, errors[:, index], strict=True):
            _, changed = dense_layer(layer, x, context, path)
            if path == Sink("mean"):
                changed = changed.at[:, 1:].set(fills[index])
            ones = (full.at[:, :, n].set(changed[:, :, n]) for n in range(full.shape[2]))
            added = [residual(layer, x, context, of) for of in ones]
            added = np.stack(added, axis=2) - residual(layer, x, context, full)[:, :, None]
            relative = np.linalg.norm(added, axis=-1) / np.linalg.norm(x, axis=-1)[:, :, None]
            wanted = np.sqrt(np.square(relative[scored]).mean(axis=0))
            np.testing.assert_allclose(error, wanted, rtol=1e-3)
        x = after


def test_errors_under_a_mask_are_those_of_its_inputs(model, excerpts, fills):
    mask = SinkMask.from_text("L0: 6s(zero) | L1-2: 6f")
    free = own_errors(model, excerpts, PATHS, fills=fills)
    under = own_errors(model, excerpts, PATHS, mask=mask, fills=fills)
    np.testing.assert_allclose(under[:, 0], free[:, 0], rtol=1e-5)
    assert np.abs(under[:, 1] / free[:, 1] - 1).mean() > 0.1


def test_a_judges_kl_is_that_of_the_specialized_model(model, excerpts, fills, judge):
    mask = SinkMask.from_text("L0: 3w(1,4) 3f | L1: 2s(mean) 4f | L2: 3f 3s(first)")
    wanted = compare(model, specialize(model, mask, fills=jnp.asarray(fills)), excerpts)
    np.testing.assert_allclose(judge(mask), wanted.kl, atol=1e-5, rtol=1e-3)
    stats = judge.stats(mask)
    np.testing.assert_allclose(stats.candidate_nll, wanted.candidate_nll, atol=1e-4)
    fast = specialize(model, mask, fills=jnp.asarray(fills))
    through_caches = compare(model, fast, excerpts, generated=5).arrays()
    apart = judge.stats(mask, generated=5).arrays()
    assert apart.keys() == through_caches.keys()
    for name in ("positions", "kl", "candidate_nll", "baseline_correct", "generated_kl"):
        np.testing.assert_allclose(apart[name], through_caches[name], atol=1e-4, rtol=1e-3)
    np.testing.assert_array_equal(stats.baseline_correct, wanted.baseline_correct)
    assert not judge(SinkMask.full(model.config)).any()
    copies = SinkMask.from_text("L0: 6f | L1: 2c(0,3) 4f | L2: f c(1,4) c(0,0) 3f")
    wanted = compare(model, specialize(model, copies), excerpts)
    np.testing.assert_allclose(judge(copies), wanted.kl, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("start", "scored"),
    [
        ("L0-2: 6f", ragged([1])),
        ("L0: 6f | L1: 6w(0,15) | L2: 2f 4w(0,15)", None),
        ("L0-2: 6f", ragged([14])),
        ("L0-2: 6f", ragged([14, 15, 13])),
    ],
)
def test_predicted_costs_are_what_small_moves_cost(model, excerpts, judge, start, scored):
    """Window(0, 15) of 16 tokens hides one key of one position. Of more, more orders count."""
    mask, paths = SinkMask.from_text(start), PATHS[3:]
    predicted = predict_moves(model, excerpts, paths, mask=mask, samples=64, scored=scored)
    counted = ragged([1]) if scored is None else scored
    kl = lambda mask: judge(mask)[counted[:, 1:]].mean(dtype=np.float64)  # noqa: E731
    moves = rank_moves(mask, paths, predicted, np.ones((1, 1)))
    assert len(moves) == mask.counts()["full"]
    before = kl(mask)
    alone, measured = [], []
    for move in moves[:10]:
        linear = predicted.linear[1, move.layer, move.unit]
        products = predicted.products[:, 1, move.layer, move.unit]
        cost = linear + np.square(products).mean() / 2
        if abs(cost) < 2e-4:
            alone.append(cost)
            measured.append(kl(make_moves(mask, [move])) - before)
    assert len(measured) >= 3
    np.testing.assert_allclose(alone, measured, rtol=0.35, atol=1e-6)


@pytest.mark.parametrize("windows", [(), (16, None, 24), (12, 12, 12)])
def test_savings_are_differences_of_predicted_programs(model, windows):
    """Also in layers that have windows of their own, narrower than a path's or wider."""
    config = dataclasses.replace(model.config, layer_windows=windows)
    paths = (Sink("first"), Window(2, 4), Window(2, 16))
    workload = Workload(32, batch_size=2, generated=3, operations_per_byte=7.0)
    savings = path_savings(config, paths, workload, num_kv_heads=config.num_kv_heads)

    def price(mask):
        costs = [
            total(predict(config, mask, sizes)) for sizes in (workload.prefill, workload.decode)
        ]
        each = [c.parameters + c.cache + c.flops / 7 for c in costs]
        return each[0] + 3 * each[1]

    full = SinkMask.full(config)
    for path, of_layers in zip(paths, savings, strict=True):
        for layer, saving in enumerate(of_layers):
            group = (path,) * 3 + (Full(),) * 3
            one_group = SinkMask((*full.heads[:layer], group, *full.heads[layer + 1 :]))
            wanted = 1 - price(one_group) / price(full)
            np.testing.assert_allclose(saving, wanted, rtol=1e-9, atol=1e-12)
    for layer, window in enumerate(windows or [None] * config.num_layers):
        least = 0 if window is not None and window <= 16 else 1e-6
        assert savings[0, layer] > savings[1, layer] > savings[2, layer] >= least
        assert (savings[2, layer] == 0) == (least == 0)
    heads = path_savings(config, paths, workload, num_kv_heads=None)
    np.testing.assert_allclose(heads * 3, savings)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), target=st.floats(0.01, 5), grouped=st.booleans())
def test_growth_fits_the_budget_and_moves_go_from_cheap_to_dear(seed, target, grouped):
    rng = np.random.default_rng(seed)
    full = SinkMask(((Full(),) * 4,) * 3)
    size, savings = (2 if grouped else 1), np.array([[1.0], [0.4], [0.2]])
    paths = PATHS[1:]
    linear = np.concatenate([np.zeros((1, 3, 4)), rng.exponential(size=(3, 3, 4))])
    predicted = Prediction(full, linear, np.zeros((0, 4, 3, 4)))
    moves = rank_moves(full, paths, predicted, savings, size=size)
    slopes = [move.cost / move.saving for move in moves]
    assert slopes == sorted(slopes)
    last = make_moves(full, moves, size=size)
    assert all(path == paths[0] for layer in last.heads for path in layer)

    def measure(mask):
        by_path = dict(zip([Full(), *paths], linear, strict=True))
        return 1.7 * sum(
            by_path[path][layer, head]
            for layer, heads in enumerate(mask.heads)
            for head, path in enumerate(heads)
        )

    step = spend(full, moves, target, measure, kl=0.0, size=size, tries=12, close=1.0)
    assert step.kl <= target
    assert step.mask == make_moves(full, moves[: step.number], size=size)
    if step.number < len(moves):
        more = make_moves(full, moves[: step.number + 1], size=size)
        assert measure(more) > target
    assert len(step.tried) <= 6


def test_moves_that_undo_each_other_are_found_together():
    """Two heads whose changes cancel, and a third that costs less than either alone."""
    full = SinkMask(((Full(),) * 3,))
    change = np.array([[1.0, -1.0, 0.5]] * 64)
    products = np.zeros((64, 2, 1, 3))
    products[:, 1, 0] = change * np.where(np.arange(64) % 2, 1, -1)[:, None]
    predicted = Prediction(full, np.zeros((2, 1, 3)), products)
    moves = rank_moves(full, [Sink("zero")], predicted, np.ones((1, 1)))
    assert moves[0].unit == 2
    assert sum(move.cost for move in moves) < 0.2
    alone = Prediction(full, np.zeros((2, 1, 3)), products[:1])
    assert sum(m.cost for m in rank_moves(full, [Sink("zero")], alone, np.ones((1, 1)))) > 1


def test_a_ranking_gives_the_first_paths_to_the_highest_scores():
    scores = np.array([[0.1, 0.9, 0.4, 0.3], [0.8, 0.7, 0.2, 0.6]])
    paths = [Sink("zero"), Window(1, 4), Window(1, 8)]
    assert str(by_ranking(scores, paths)) == "L0: f s(zero) 2f | L1: w(1,4) w(1,8) 2f"
    grouped = by_ranking(scores, paths, num_kv_heads=2)
    assert str(grouped) == "L0: 2f 2w(1,4) | L1: 2s(zero) 2w(1,8)"
    with pytest.raises(ValueError, match="5 paths"):
        by_ranking(scores, [Sink("zero")] * 5, num_kv_heads=2)


def test_few_draws_are_trusted_little():
    rng = np.random.default_rng(0)
    independent = rng.normal(size=(40, 30))
    together = rng.normal(size=(400, 1)) + 0.1 * rng.normal(size=(400, 30))
    assert shrinkage(independent) > 0.8
    assert shrinkage(together) < 0.05
    assert shrinkage(independent[:1]) == 1
    stays = 1e-9 * rng.normal(size=(400, 30))
    assert shrinkage(np.hstack([together, stays])) == shrinkage(together)


def test_a_search_stays_within_its_budget_and_finds_the_same_again(model, excerpts):
    more = np.asarray(tiny.tokens_of(model, (6, 16), seed=9))
    settings = SearchSettings(
        (Window(1, 4), Window(1, 8)), 0.05, Workload(16), objective="heads", rounds=2, samples=4
    )
    outcome = search(model, excerpts, more, settings)
    size = int(outcome.mask.masked.sum())
    assert 0 < size < 18
    assert outcome.kl <= 0.05
    kl = Judge(model, more)(outcome.mask).astype(np.float64)
    first = min(path.acts_from for layer in outcome.mask.heads for path in layer if path != Full())
    # Of 16 tokens the last 4, none of which is generated, or those at which a window acts.
    assert outcome.kl == pytest.approx(max(kl[:, first - 1 :].mean(), kl[:, 11:].mean()))
    on_mean = dataclasses.replace(settings, budget_on="mean")
    other = search(model, excerpts, more, on_mean)
    assert other.kl == pytest.approx(Judge(model, more)(other.mask).mean(dtype=np.float64))
    assert int(other.mask.masked.sum()) > size
    generated = search(model, excerpts[:, :12], more, settings)  # 4 of 16 tokens come after
    kl = Judge(model, more)(generated.mask).astype(np.float64)
    assert generated.kl >= kl[:, 11:].mean() - 1e-9
    again = search(model, excerpts, more, settings)
    assert again.mask == outcome.mask
    assert [step.tried for step in again.rounds] == [step.tried for step in outcome.rounds]


def questions(model, seed, count=4):
    """Questions of up to 16 tokens that end in the three tokens that the model finds likeliest."""
    tokens = np.array(tiny.tokens_of(model, (count, 16), seed=seed))
    lengths, rows = np.resize([16, 14], count), np.arange(count)
    for place in (3, 2, 1):
        at = lengths - place
        tokens[rows, at] = np.asarray(model(tokens))[rows, at - 1].argmax(axis=-1)
    return Questions(tokens, lengths, np.full(count, 3), (), 3)


def test_a_search_keeps_answers_too(model, excerpts):
    settings = SearchSettings(
        (Window(1, 4),), 0.2, Workload(16), objective="heads", rounds=2, samples=4
    )
    held = questions(model, 5), questions(model, 6)
    free = search(model, excerpts, excerpts, settings)

    def nll(forward, of):
        """Of each answer, from all logits."""
        logits = np.asarray(jax.nn.log_softmax(forward(of.tokens)), np.float64)
        rows = np.arange(len(of.tokens))[:, None]
        at = of.lengths[:, None] - np.arange(3, 0, -1)
        return -logits[rows, at - 1, of.tokens[rows, at]].sum(axis=1)

    def rises(mask):
        fast = specialize(model, mask)
        return [nll(fast, of) - nll(model, of) for of in held]

    def most_of(mask):
        """The greatest mean rise with its standard error."""
        return max(of.mean() + of.std(ddof=1) / len(of) ** 0.5 for of in rises(mask))

    most = most_of(free.mask)
    assert most > 2e-3
    returned = []
    for budget in (0.7 * most, 0.1 * most):
        answers = Answers(questions(model, 7), held, budget, floor=0)
        kept = search(model, excerpts, excerpts, settings, answers=[answers])
        means = [of.mean() for of in rises(kept.mask)]
        np.testing.assert_allclose(kept.rises, means, atol=1e-4)
        assert most_of(kept.mask) <= budget + 1e-4
        assert kept.kl <= 0.2
        masked = [int(step.mask.masked.sum()) for step in kept.rounds]
        assert masked == sorted(masked)  # a round never loses heads
        assert masked[-1] < free.mask.masked.sum()
        returned.append(sum(len(step.returned) for step in kept.rounds))
    assert returned[0] > 0
    assert returned[1] == 0  # and fewer moves instead
    ranked, *wider = (
        dataclasses.replace(of, tokens=np.pad(of.tokens, ((0, 0), (0, 16))))
        for of in (answers.ranked, *held)
    )
    says_nothing = dataclasses.replace(answers, ranked=ranked, held=tuple(wider), floor=1.1)
    same = search(model, excerpts, excerpts, settings, answers=[says_nothing])
    assert same.rises == (None, None)
    assert same.mask == free.mask
    shorter = search(model, excerpts, excerpts, settings, answers=[says_nothing, answers])
    assert (same.asked_at, shorter.asked_at, free.asked_at) == (32, 16, None)
    assert (shorter.mask, shorter.rises) == (kept.mask, kept.rises)


def test_heads_go_back_to_a_window_as_wide_as_the_questions(model):
    excerpts = np.asarray(tiny.tokens_of(model, (3, 40), seed=1))
    wide, narrow = Window(2, 14), Window(1, 4)
    settings = SearchSettings((narrow, wide), 1.0, Workload(40), rounds=1, samples=4)
    free = search(model, excerpts, excerpts, settings)
    assert {path for layer in free.mask.heads for path in layer} >= {narrow, wide}
    held = (questions(model, 5), questions(model, 6))
    # Questions have 16 tokens, in which `wide` hides nothing.
    answers = Answers(questions(model, 7), held, 1e-3, floor=0)
    kept = search(model, excerpts, excerpts, settings, answers=[answers])
    (step,) = kept.rounds
    assert step.returned
    for layer, heads in enumerate(kept.mask.heads):
        for head, path in enumerate(heads):
            was = free.mask.heads[layer][head]
            assert path == (wide if (layer, head) in step.returned else was)
            assert was == narrow or (layer, head) not in step.returned
    assert max(kept.rises) <= 1e-3
    assert kept.kl <= free.kl + 1e-6


def test_a_search_for_several_chips_finds_a_mask_that_is_even_with_answers_and_without(
    model, excerpts
):
    paths = (Window(1, 4), Sink("first"))
    how = {"objective": "heads", "rounds": 2, "samples": 4}
    settings = SearchSettings(paths, 0.2, Workload(16), **how)
    assert "chips" not in settings.describe()  # folders of earlier versions go on
    settings = dataclasses.replace(settings, chips=2)
    assert settings.describe()["chips"] == 2
    free = search(model, excerpts, excerpts, settings)
    held = (questions(model, 5),)
    answers = Answers(questions(model, 7), held, nll_budget=1e-3, floor=0)
    kept = search(model, excerpts, excerpts, settings, answers=[answers])
    assert max(kept.rises) <= 1e-3
    assert 0 < free.kl <= 0.2
    assert kept.mask.masked.sum() < free.mask.masked.sum()
    for mask in (free.mask, kept.mask, *(step.mask for step in free.rounds)):
        assert mask.balanced(2, model.config.num_kv_heads) == mask


def test_shorter_prompts_cost_what_their_own_excerpts_cost(model):
    rows = np.asarray(tiny.tokens_of(model, (3, 44), seed=2))
    mask = SinkMask.from_text("L0: 6f | L1: 3w(1,4) 3f | L2: 6w(2,20)")
    parts = parts_up_to(Judge(model, rows)(mask), mask, 36)
    assert list(parts) == [36, 18, 9, 4, 2]
    alone = part_means(Judge(model, rows[:, :26])(mask), mask, 18)
    assert list(parts[18]) == list(alone) == ["kl_acting", "kl_late", "kl_generated"]
    np.testing.assert_allclose(list(parts[18].values()), list(alone.values()), rtol=1e-4)
