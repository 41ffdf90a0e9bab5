"""Sources of copied patterns: fits against the dense oracle, masks, and the script on a model."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import is_part
from scripts import as_flags, run_main

from sinkjax import Copy, Full, InputError, Sink, SinkMask, Window
from sinkjax.distributed import make_mesh
from sinkjax.instruments.own_errors import own_errors
from sinkjax.instruments.patterns import copied_residuals, no_patterns, source_numbers
from sinkjax.models.sharding import lay_rows, shard
from sinkjax.report.page import render_page
from sinkjax.studies.copies.fit import fit_sources
from sinkjax.studies.copies.masks import VARIANTS, copy_mask, shuffled_copies
from sinkjax.studies.copies.study import Copies
from sinkjax.studies.copies.tables import copying_tables
from sinkjax.studies.costs import LAST, PARTS
from sinkjax.studies.results import read_records
from sinkjax.testing.oracle import apply_pattern, attention_scores, reference_logits

COPIES = "experiments.copies"


@pytest.fixture(scope="module")
def model():
    return tiny.make(score_cap=1.5)


@pytest.fixture(scope="module")
def excerpts(model):
    return np.asarray(tiny.tokens_of(model, (4, 9)))


def dense_sources(model, tokens):
    """Patterns [L, N, B, T, T], values by query head [L, B, T, N, H], residuals [L, B, T, D]."""
    (x, context), patterns, values, residuals = model.enter(tokens), [], [], []

    def attend(q, k, v):
        scores = np.asarray(attention_scores(q, k, model.config.score_cap), np.float64)
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        patterns.append(np.moveaxis(weights, 1, 0))
        values.append(np.repeat(np.asarray(v, np.float64), q.shape[2] // v.shape[2], axis=2))
        return apply_pattern(jnp.asarray(weights, jnp.float32), v), None

    for layer in model.layers:
        residuals.append(x)
        x = layer.feed_forward(layer.attend(x, context, attend)[0])
    return np.stack(patterns), np.stack(values), np.stack(residuals).astype(np.float64)


@pytest.mark.parametrize("shape", [{}, {"residual_scale": 0.22}, {"outer_norms": True}])
def test_leaving_a_head_out_is_its_own_error_under_zeros(excerpts, shape):
    model = tiny.make(**shape)
    errors = own_errors(model, excerpts, [Sink("zero")])[0]
    fit = fit_sources(model, excerpts)
    np.testing.assert_allclose(fit.nothing, errors, rtol=1e-3)
    assert (np.isfinite(fit.output[2, :, :2]) & (fit.output[2, :, :2] > 0)).all()


def test_fits_are_what_the_dense_oracle_says(model, excerpts):
    fit = fit_sources(model, excerpts)
    patterns, values, residuals = dense_sources(model, jnp.asarray(excerpts))
    norms = np.square(residuals).sum(axis=-1)[:, :, 1:]
    for layer, head, from_layer, from_head in [(1, 0, 0, 3), (2, 5, 1, 5), (2, 1, 0, 0)]:
        own, theirs = patterns[layer, head], patterns[from_layer, from_head]
        distance = np.square(theirs - own).sum(axis=-1)[:, 1:]
        error = fit.pattern[layer, head, from_layer, from_head]
        np.testing.assert_allclose(error, np.sqrt(distance.mean()), rtol=1e-4)
        o = np.asarray(model.layers[layer].attention.o[...], np.float64)[:, head].T
        change = (theirs - own) @ values[layer, :, :, head] @ o
        squares = np.square(change).sum(axis=-1)[:, 1:] / norms[layer]
        error = fit.output[layer, head, from_layer, from_head]
        np.testing.assert_allclose(error, np.sqrt(squares.mean()), rtol=1e-4)
        whole = np.square(own @ values[layer, :, :, head] @ o).sum(axis=-1)[:, 1:] / norms[layer]
        np.testing.assert_allclose(fit.nothing[layer, head], np.sqrt(whole.mean()), rtol=1e-4)
    layer, _, from_layer, _ = np.indices(fit.output.shape)
    for array in (fit.output, fit.pattern):
        np.testing.assert_array_equal(np.isinf(array), from_layer >= layer)


def test_excerpts_in_several_batches_fit_as_one(model, excerpts, monkeypatch):
    from sinkjax.studies.copies import fit

    whole = fit_sources(model, excerpts)
    monkeypatch.setattr(fit, "PATTERN_TOKENS", 18)
    parts = fit_sources(model, excerpts)
    np.testing.assert_allclose(parts.output, whole.output, rtol=1e-5)
    np.testing.assert_allclose(parts.nothing, whole.nothing, rtol=1e-5)


def test_every_device_of_a_mesh_has_room_for_the_patterns_of_its_own_rows(model):
    """The first had it for all of them, more the more devices there are. Few rows lie on each."""
    laid = shard(model, make_mesh({"data": 4, "model": 2}))
    tokens = np.asarray(tiny.tokens_of(model, (8, 9)))
    patterns = no_patterns(laid, lay_rows(laid, tokens))
    assert patterns.sharding.shard_shape(patterns.shape) == (3, 6, 2, 9, 9)
    assert not np.any(patterns)
    few = no_patterns(laid, lay_rows(laid, tokens[:3]))
    assert few.sharding.shard_shape(few.shape) == (3, 6, 3, 9, 9)


def test_the_last_batch_over_a_mesh_lies_as_the_others_and_fits_as_one(model, monkeypatch):
    """What was new of it was cut out, and every device had all of that."""
    from sinkjax.studies.copies import fit

    lie = set()

    def noted(of, tokens):
        lie.add((tokens.shape[0], tokens.sharding.shard_shape(tokens.shape)[0]))
        return no_patterns(of, tokens)

    monkeypatch.setattr(fit, "no_patterns", noted)
    monkeypatch.setattr(fit, "PATTERN_TOKENS", 9)
    tokens = np.asarray(tiny.tokens_of(model, (6, 9)))
    alone = fit_sources(model, tokens)
    lie.clear()
    measured = []
    over = fit_sources(shard(model, make_mesh({"data": 4, "model": 2})), tokens, measured.append)
    assert (lie, measured) == ({(4, 1)}, [36, 18])
    for name in ("pattern", "output", "nothing"):
        np.testing.assert_allclose(getattr(over, name), getattr(alone, name), rtol=1e-5)


def test_copies_as_data_are_the_mask_that_the_oracle_defines(model, excerpts):
    mask = SinkMask.from_text("L0: 6f | L1: 2c(0,3) 4f | L2: f c(1,4) c(0,0) 3f")
    tokens = jnp.asarray(excerpts)
    logits = model.logits(copied_residuals(model, tokens, source_numbers(mask)))
    np.testing.assert_allclose(logits, reference_logits(model, mask, tokens), atol=2e-5)


def test_other_paths_are_no_copies():
    mask = SinkMask.from_text("L0: 2f | L1: f w(1,4)")
    with pytest.raises(InputError, match=r"layer 1, head 1 is window\(1,4\)"):
        source_numbers(mask)
    assert Window(1, 4) in mask.heads[1]


@given(seed=st.integers(0, 99), variant=st.sampled_from(VARIANTS), count=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_best_pairs_copy_first(seed, variant, count):
    fit = np.random.default_rng(seed).random((3, 4, 3, 4))
    mask = copy_mask(fit, variant, count)
    assert mask.counts()["copy"] == count
    for layer, paths in enumerate(mask.heads):
        for head, path in enumerate(paths):
            if isinstance(path, Copy):
                assert path.layer < layer
                if variant == "layer_0":
                    assert (path.layer, path.head) == (0, head)
                if variant == "adjacent":
                    assert path.layer == layer - 1
    # A smaller mask is a part of it: the pairs come in order.
    smaller = copy_mask(fit, variant, count - 1) if count > 1 else SinkMask(((Full(),) * 4,) * 3)
    assert is_part(smaller, mask)


def test_the_first_pair_is_the_best_of_all():
    fit = np.random.default_rng(0).random((3, 4, 3, 4))
    fit[2, 1, 1, 3] = -1.0
    fit[1, 3, 0, 0] = -0.5  # of the source, which so may not copy itself
    mask = copy_mask(fit, "output", 3)
    assert mask.heads[2][1] == Copy(1, 3)
    assert mask.heads[1][3] == Full()
    assert copy_mask(fit, "layer_0", 3).heads[2][1] in (Full(), Copy(0, 1))


def test_more_copies_than_there_can_be_are_refused():
    fit = np.random.default_rng(0).random((2, 3, 2, 3))
    with pytest.raises(InputError, match="4 heads are to copy, and 3 can"):
        copy_mask(fit, "output", 4)


def test_the_control_copies_with_the_same_heads():
    mask = copy_mask(np.random.default_rng(0).random((4, 5, 4, 5)), "output", 6)
    control = shuffled_copies(mask, seed=0)
    np.testing.assert_array_equal(control.masked, mask.masked)
    assert control != mask
    assert control == shuffled_copies(mask, seed=0) != shuffled_copies(mask, seed=1)


def test_the_script_records_every_variant_and_shows_it(small, tmp_path, capsys):
    flags = [
        f"--model={small}",
        "--lengths=8",
        "--judge_excerpts=3",
        "--choose_excerpts=2",
        "--shares=0.1,0.25",
        "--generated=2",
        "--control_draws=2",
        f"--output_dir={tmp_path}",
    ]
    run_main(COPIES, *flags)
    out = capsys.readouterr().out
    _, records = read_records(tmp_path)
    copies = [record for record in records if record["kind"] == "copies"]
    assert len(copies) == 2 * (6 + 2 * 2)
    for record in copies:
        mask = SinkMask.from_text(record["result"]["mask"])
        assert mask.masked.sum() == round(12 * record["share"])
        assert record["chosen_on"]["tokens_sha256"] != record["source"]["tokens_sha256"]
        if "draw" not in record:
            for kl in ("kl", *PARTS, LAST):
                assert f"{record['result'][kl]['value']:.4f}" in out
        assert record["result"]["kl_generated"]["first"] == 8
    by_variant = {
        variant: [r["result"] for r in copies if (r["variant"], r["share"]) == (variant, 0.25)]
        for variant in ("sinks", "random", "shuffled")
    }
    for variant, draws in by_variant.items():
        masks = {result["mask"] for result in draws}
        assert len(masks) == len(draws) == (1 if variant == "sinks" else 2)
        if variant != "shuffled":  # of two layers every copy is of layer 0
            for text in masks:
                paths = SinkMask.from_text(text).heads[1]
                assert all(path in (Full(), Copy(0, head)) for head, path in enumerate(paths))
    shown = np.mean([result["kl"]["value"] for result in by_variant["random"]])
    assert f"{shown:.4f}" in out
    (sources,) = [record for record in records if record["kind"] == "sources"]
    best = sources["result"]["best"]
    assert best[0] == [None] * 6
    assert all(layer == 0 for layer, _ in best[1])
    assert "worse than nothing" in out
    html, _ = render_page(Copies.page(*read_records(tmp_path)))
    for table in copying_tables(records):
        assert all(f">{cell}<" in html for row in table.rows for cell in row)
    run_main(COPIES, *flags)
    assert read_records(tmp_path)[1] == records


BAD = {
    "share": ({"shares": "0,0.1"}, ["--shares=0:"]),
    "none": ({"shares": ""}, ["--shares: give at least one"]),
    "many": ({"shares": "0.9"}, ["--shares: 11 heads are to copy"]),
    "excerpts": ({"judge_excerpts": "0"}, ["--judge_excerpts=0"]),
    "text": (
        {"judge_text": "/nowhere.txt", "choose_text": "/nor.txt"},
        ["/nowhere.txt", "/nor.txt"],
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_flags_are_refused(what, small, tmp_path):
    more, mentions = BAD[what]
    flags = {"model": small, "lengths": "8", "judge_excerpts": "2", "output_dir": tmp_path, **more}
    with pytest.raises(InputError) as error:
        run_main(COPIES, *as_flags(flags))
    for mention in mentions:
        assert mention in str(error.value)
