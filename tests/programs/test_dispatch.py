"""Plans: which mask serves which length, held against whole forward passes under each mask."""

import json

import hf
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import masks as mask_strategies
import numpy as np
import pytest
import tiny

import sinkjax
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Sink, Window
from sinkjax.programs.dispatch import CROSSINGS, Dispatcher, Plan, Stage, compile_plan
from sinkjax.specialize.build import specialize

pytestmark = pytest.mark.quick

SHORT, MIDDLE = 10, 17
SIZES = dict(batch_size=2, prefill_lengths=(8, 20, 40), max_length=40, steps_per_call=3)
NEW = 14


@pytest.fixture(scope="module")
def model() -> sinkjax.Llama:
    return tiny.make(num_layers=2, vocab_size=hf.TINY["vocab_size"])


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    """Three stages that differ a lot, under both rules."""
    full = (Full(),) * 6
    short = SinkMask((full, (Sink("zero"),) * 3 + (Sink("first"),) + (Copy(0, 1),) * 2))
    middle = SinkMask(((Window(1, 4),) * 6, (Full(), Sink("zero")) * 3))
    stages = (Stage(short, SHORT), Stage(middle, MIDDLE), Stage(SinkMask((full,) * 2)))
    return {rule: Plan(stages, rule) for rule in ("stay", "prefill")}


@pytest.fixture(scope="module")
def dispatchers(model, plans) -> dict[str, Dispatcher]:
    return {rule: compile_plan(model, plan, **SIZES) for rule, plan in plans.items()}


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    """On both sides of both boundaries and at them."""
    return [hf.random_tokens((n,), seed=n) for n in (1, SHORT, 24, SHORT + 1, MIDDLE, 4)]


@pytest.fixture(scope="module")
def likeliest(model, plans):
    """The likeliest next token of a text under a mask, from a whole forward pass."""
    step = jax.jit(lambda model, tokens, length: model(tokens, lengths=length)[0, length[0] - 1])
    models = {stage.mask: specialize(model, stage.mask) for stage in plans["stay"].stages}

    def next_token(mask: SinkMask, text: list[int]) -> int:
        padded = jnp.asarray([text + [0] * (48 - len(text))], jnp.int32)
        return int(step(models[mask], padded, jnp.asarray([len(text)], jnp.int32)).argmax())

    return next_token


@pytest.mark.parametrize("rule", ["stay", "prefill"])
def test_every_token_comes_from_the_mask_that_the_rule_names(
    plans, dispatchers, prompts, likeliest, rule
):
    new = dispatchers[rule].generate(prompts, max_new_tokens=NEW)
    for tokens, ours in zip(prompts, new, strict=True):
        text = tokens.tolist()
        for token in ours.tolist():
            length = len(tokens) if rule == "stay" else len(text)
            assert token == likeliest(plans[rule].mask(length), text)
            text.append(token)
        assert len(text) == len(tokens) + NEW


def test_the_rules_differ_where_a_boundary_is_crossed_and_nowhere_else(dispatchers, prompts):
    stay, prefill = (
        dispatchers[rule].generate(prompts, max_new_tokens=NEW) for rule in ("stay", "prefill")
    )
    same = [(stayed == prefilled).all() for stayed, prefilled in zip(stay, prefill, strict=True)]
    # 24 tokens are beyond every boundary; 1 and 4 grow over the first, 10, 11 and 17 over one each.
    assert same[2]
    assert not all(same)
    for tokens, stayed, prefilled in zip(prompts, stay, prefill, strict=True):
        bounds = [SHORT, MIDDLE]
        before = min((b - len(tokens) + 1 for b in bounds if b >= len(tokens)), default=NEW)
        np.testing.assert_array_equal(stayed[:before], prefilled[:before])


def test_streaming_stopping_and_sampling_go_across_boundaries(dispatchers, prompts):
    settings = dict(max_new_tokens=NEW, temperature=0.9, top_k=30, seed=3)
    whole = dispatchers["prefill"].generate(prompts, **settings)
    seen: dict[int, list[int]] = {index: [] for index in range(len(prompts))}
    dispatchers["prefill"].generate(
        prompts, on_tokens=lambda row, tokens: seen[row].extend(tokens), **settings
    )
    for index, tokens in enumerate(whole):
        assert seen[index] == tokens.tolist()
        alone = dispatchers["prefill"].generate(prompts[index], **{**settings, "seed": 3 + index})
        np.testing.assert_array_equal(alone, tokens)
    stop = int(whole[0][11])  # after both crossings
    cut = dispatchers["prefill"].generate(prompts[0], stop_tokens=[stop], **settings)
    place = whole[0].tolist().index(stop)
    np.testing.assert_array_equal(cut, whole[0][: place + 1])


def test_each_stage_has_the_buckets_and_the_room_that_its_lengths_need(dispatchers):
    stay, prefill = dispatchers["stay"].programs, dispatchers["prefill"].programs
    for programs in (stay, prefill):
        assert [list(program.prefill) for program in programs] == [[8, 20], [20], [20, 40]]
    assert [program.max_length for program in stay] == [40, 40, 40]
    assert [program.max_length for program in prefill] == [20, 20, 40]


def test_stages_share_the_weights_that_their_masks_leave_whole(dispatchers):
    pointers = [
        {program.parameters[name].unsafe_buffer_pointer() for program in dispatcher.programs}
        for dispatcher in dispatchers.values()
        for name in ("embedding", "layers.0.mlp.down", "norm.scale")
    ]
    assert all(len(each) == 1 for each in pointers)


def test_the_hybrid_is_one_line(model):
    config = model.config
    mask = SinkMask.where(np.eye(2, 6, dtype=bool), Sink("first"))
    plan = Plan.hybrid(mask, up_to=10)
    assert plan.crossing == "stay"
    assert plan.mask(1) == plan.mask(10) == mask
    assert plan.mask(11) == plan.mask(10**6) == SinkMask.full(config)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    bounds=st.lists(st.integers(1, 10**6), max_size=3, unique=True),
    drawn=st.lists(mask_strategies.masks(2, 4, 2), min_size=4, max_size=4),
    crossing=st.sampled_from(["stay", "prefill"]),
)
def test_plans_are_values_that_survive_json(bounds, drawn, crossing):
    stages = [*map(Stage, drawn, sorted(bounds)), Stage(drawn[-1])]
    plan = Plan(tuple(stages), crossing)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert hash(again) == hash(plan)
    assert all(plan.mask(n) == again.mask(n) for b in bounds for n in (b, b + 1))


def test_a_stage_of_several_lengths_has_windows_that_grow_with_them():
    stages = [
        {"up_to": [8, 32], "mask": "L0: f w(1,2+L/8)"},
        {"up_to": None, "mask": "L0: 2f"},
    ]
    plan = Plan.from_dict({"crossing": "stay", "stages": stages})
    texts = {n: str(plan.mask(n)) for n in (1, 8, 9, 32, 33)}
    assert texts == {1: "L0: f w(1,3)", 8: "L0: f w(1,3)"} | dict.fromkeys(
        (9, 32), "L0: f w(1,6)"
    ) | {33: "L0: 2f"}
    masks = {n: plan.mask(n) for n in (32, 8)}
    assert [stage.up_to for stage in Plan.by_length(masks).stages] == [8, None]
    assert {n: Plan.by_length(masks).mask(n) for n in masks} == masks


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, 'a plan has "crossing" and a list of "stages"'),
        ({"crossing": "stay", "stages": [], "rule": 1}, "nothing else"),
        ({"crossing": "stay", "stages": [{"mask": "L0: f"}]}, "stage 0 is"),
        ({"crossing": "stay", "stages": [{"up_to": 3, "mask": "L0: f"}]}, "the last stage"),
        ({"crossing": "stay", "stages": [{"up_to": None, "mask": "L0: 2x"}]}, "stage 0: 'L0: 2x'"),
        (
            {"crossing": "stay", "stages": [{"up_to": None, "mask": "L0: w(1,L/8)"}]},
            "'w(1,L/8)' is no path: it grows with a length",
        ),
        ({"crossing": "stay", "stages": [{"up_to": [], "mask": "L0: f"}]}, "in the last stage"),
        ({"crossing": "stay", "stages": [{"up_to": None, "mask": 5}]}, "stage 0: mask is 5; give"),
        (
            {"crossing": "stay", "stages": [{"up_to": None, "mask": ["L0: f"]}]},
            "stage 0: mask is [",
        ),
        (
            {
                "crossing": "stay",
                "stages": [{"up_to": up, "mask": "L0: f"} for up in (True, None)],
            },
            "stage 0: up_to is True; it has to be a whole number above 0",
        ),
        ({"crossing": ["stay"], "stages": [{"up_to": None, "mask": "L0: f"}]}, "stay, prefill"),
        ({"crossing": "jump", "stages": [{"up_to": None, "mask": "L0: f"}]}, "stay, prefill"),
        (
            {
                "crossing": "stay",
                "stages": [
                    {"up_to": 5, "mask": "L0: f"},
                    {"up_to": 5, "mask": "L0: f"},
                    {"up_to": None, "mask": "L0: 2f"},
                ],
            },
            "a whole number above 5",
        ),
    ],
)
def test_what_is_no_plan_is_refused(fields, said):
    with pytest.raises(sinkjax.InputError) as error:
        Plan.from_dict(fields)
    assert said in str(error.value)


def test_a_stage_beyond_all_room_is_refused(model, plans):
    with pytest.raises(sinkjax.InputError) as error:
        compile_plan(model, plans["prefill"], prefill_lengths=(8, 16), max_length=17)
    assert "the stage from 18 tokens on is beyond max_length, 17" in str(error.value)


@pytest.mark.parametrize("crossing", CROSSINGS)
def test_prompts_beyond_every_bucket_come_in_pieces(model, plans, dispatchers, crossing):
    """The last stage has no bucket of its own."""
    pieces = compile_plan(model, plans[crossing], prefill_lengths=(5, 16), max_length=40)
    assert [list(program.prefill) for program in pieces.programs] == [[5, 16], [16], [16]]
    prompts = [hf.random_tokens((n,), seed=n) for n in (3, 17, 19, 33)]
    for ours, wanted in zip(
        *(d.generate(prompts, max_new_tokens=7) for d in (pieces, dispatchers[crossing])),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, wanted)
