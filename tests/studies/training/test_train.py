"""Distillation: gradients against the dense oracle, gates, repairs, stops, and the two scripts."""

import contextlib
import dataclasses
import gc
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scripts import as_flags, run_main

from sinkjax import InputError, SinkMask, Window, load_mask, specialize
from sinkjax.checkpoint import orbax
from sinkjax.distributed import make_mesh
from sinkjax.files import check_path
from sinkjax.instruments.token_losses import OutputHead, residuals
from sinkjax.models.sharding import lay_rows, mesh_of, shard
from sinkjax.programs.hlo import Module
from sinkjax.studies.gates.gates import GatedModel, gates_of, start_gates
from sinkjax.studies.repair.repair import Repair, load_repair, save_repair
from sinkjax.studies.results import read_records
from sinkjax.studies.training.train import TrainSettings, distil, mean_divergence
from sinkjax.testing.oracle import reference_logits

PATH = Window(1, 4)
TRAIN = TrainSettings(steps=8, learning_rate=0.1, rows=2, save_every=3)


@pytest.fixture(scope="module")
def model():
    return tiny.make()


@pytest.fixture(scope="module")
def excerpts(model):
    return np.asarray(tiny.tokens_of(model, (5, 12)))


@pytest.fixture(scope="module")
def gated(model):
    return GatedModel(model, PATH)


def test_gates_at_their_ends_are_masks(model, gated, excerpts):
    tokens = jnp.asarray(excerpts)
    chosen = np.random.default_rng(0).random((3, 6)) < 0.5
    logits = jnp.where(jnp.asarray(chosen), -50.0, 50.0).astype(jnp.float32)
    found = model.logits(gated.residuals(logits, tokens))
    expected = reference_logits(model, SinkMask.where(chosen, PATH), tokens)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("uneven", [False, True])
def test_the_loss_and_its_gradient_are_those_of_all_logits_at_once(model, gated, excerpts, uneven):
    tokens = jnp.asarray(excerpts)
    shape = len(excerpts), excerpts.shape[1] - 1
    weights = jnp.full(shape, 1 / shape[1])
    if uneven:
        weights = jnp.asarray(np.random.default_rng(1).random(shape, np.float32))
    logits = start_gates(3, 2) * jnp.asarray([[0.1, 0.5], [-0.2, 0.3], [0.2, -0.4]])

    def whole(logits):
        ours = jax.nn.log_softmax(model.logits(gated.residuals(logits, tokens))[:, 1:])
        theirs = jax.nn.log_softmax(model(tokens)[:, 1:])
        return ((jnp.exp(theirs) * (theirs - ours)).sum(axis=-1) @ weights.T).trace() / shape[0]

    expected, gradient = jax.value_and_grad(whole)(logits)
    found, back = jax.vjp(lambda p: gated.residuals(p, tokens)[:, 1:], logits)
    head = OutputHead(model)
    kl, of_found = mean_divergence(head, residuals(model, tokens)[:, 1:], found, weights)
    np.testing.assert_allclose(kl, expected, rtol=1e-4)
    np.testing.assert_allclose(back(of_found)[0], gradient, atol=1e-6)
    assert np.abs(gradient).min() > 1e-5


def train(model, gated, excerpts, folder, settings=TRAIN, **more):
    price = lambda logits: 0.3 * gates_of(logits).mean()  # noqa: E731
    start = start_gates(3, 6)
    return distil(model, gated.residuals, start, excerpts, settings, folder, price=price, **more)


@pytest.fixture(scope="module")
def trained(model, gated, excerpts, tmp_path_factory):
    return train(model, gated, excerpts, tmp_path_factory.mktemp("whole") / "checkpoints")


def test_a_price_draws_gates_down_and_needed_ones_least(trained):
    assert trained.history["loss"].shape == (8,)
    np.testing.assert_allclose(
        trained.history["loss"], trained.history["kl"] + trained.history["price"]
    )
    assert (np.diff(trained.history["price"][1:]) < 0).all()
    gates = np.asarray(gates_of(trained.parameters))
    assert gates.max() < gates_of(start_gates(1, 1)).item()
    assert np.ptp(gates) > 1e-4


def test_training_that_was_stopped_ends_as_if_it_had_not_been(
    trained, model, gated, excerpts, tmp_path, monkeypatch
):
    steps = []

    def stop(tokens):
        steps.append(tokens)
        if len(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, gated, excerpts, tmp_path, on_step=stop)
    kept = tmp_path.with_name("kept")
    shutil.copytree(tmp_path / "3", kept)
    for file in [file for file in (tmp_path / "3").rglob("*") if file.is_file()]:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"3/default.*; delete its checkpoint, and the same com"):
        train(model, gated, excerpts, tmp_path)
    shutil.rmtree(tmp_path / "3")
    kept.rename(tmp_path / "3")
    counted, looked_at = [], []
    check = lambda path: looked_at.append(path) or check_path(path)  # noqa: E731
    monkeypatch.setattr(orbax, "check_path", check)
    again = train(model, gated, excerpts, tmp_path, on_step=counted.append)
    assert len(looked_at) == len(set(looked_at)) > 5  # each file once
    assert counted == [3 * 24, 24, 24, 24, 24, 24]  # from the checkpoint after three steps
    np.testing.assert_array_equal(again.parameters, trained.parameters)
    for name, array in again.history.items():
        np.testing.assert_array_equal(array, trained.history[name])


def test_a_training_does_not_go_on_from_other_numbers(trained, model, gated, excerpts, tmp_path):
    """To Orbax any numbers of these shapes are as good as those that were written."""
    ours, others = tmp_path / "ours", tmp_path / "others"
    train(model, gated, excerpts, ours)
    train(model, gated, excerpts, others, dataclasses.replace(TRAIN, learning_rate=0.2))
    kept = tmp_path / "kept"
    (ours / "8" / "default").rename(kept)
    shutil.copytree(others / "8" / "default", ours / "8" / "default")
    with pytest.raises(InputError, match=r"8 is damaged \(its numbers are not those that"):
        train(model, gated, excerpts, ours)
    shutil.rmtree(ours / "8" / "default")
    kept.rename(ours / "8" / "default")
    (ours / "8" / "state.sha256").unlink()  # as of an earlier version
    again = train(model, gated, excerpts, ours)
    np.testing.assert_array_equal(again.parameters, trained.parameters)


def test_bytes_of_a_checkpoint_that_change_are_refused_or_change_nothing(
    trained, model, gated, excerpts, tmp_path, caplog
):
    """And nothing is left unfinished, of which asyncio would speak."""
    train(model, gated, excerpts, tmp_path)
    draw = np.random.default_rng(0)
    for file in (tmp_path / "8").glob("**/d/*"):
        content = file.read_bytes()
        for at in draw.integers(len(content), size=4):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with contextlib.suppress(InputError):
                again = train(model, gated, excerpts, tmp_path)
                np.testing.assert_array_equal(again.parameters, trained.parameters)
                np.testing.assert_array_equal(again.history["kl"], trained.history["kl"])
        file.write_bytes(content)
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_pipe_or_nested_json_in_a_checkpoint_is_refused(model, gated, excerpts, tmp_path):
    settings = dataclasses.replace(TRAIN, steps=1)
    train(model, gated, excerpts, tmp_path, settings)
    file = tmp_path / "1" / "default" / "_METADATA"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match=r"_METADATA cannot be read \(it is a pipe .*; delete"):
        train(model, gated, excerpts, tmp_path, settings)
    file.unlink()
    file.touch()
    os.truncate(file, 3 << 29)
    with pytest.raises(InputError, match=r"_METADATA cannot be read \(it has 1,610,612,736 bytes"):
        train(model, gated, excerpts, tmp_path, settings)
    file.unlink()
    (tmp_path / "1" / "_CHECKPOINT_METADATA").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"is damaged .*; delete it"):
        train(model, gated, excerpts, tmp_path, settings)


def test_a_training_over_a_mesh_goes_on_over_it(model, excerpts, tmp_path):
    """What was restored was on one device, and no computation took it beside the others."""
    laid = shard(model, make_mesh({"data": 4, "model": 2}))
    forward, start = GatedModel(laid, PATH).residuals, start_gates(3, 6)
    how = dataclasses.replace(TRAIN, steps=2, save_every=1)
    whole = distil(laid, forward, start, excerpts, how, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "1", tmp_path / "stopped" / "1")
    again = distil(laid, forward, start, excerpts, how, tmp_path / "stopped")
    np.testing.assert_array_equal(again.parameters, whole.parameters)
    assert mesh_of(laid).shape == again.parameters.sharding.mesh.shape


def test_rows_that_a_mesh_does_not_divide_lie_over_it_and_train_as_on_one_device(
    model, excerpts, tmp_path, monkeypatch
):
    """Every device had all of them."""
    from sinkjax.studies.training import train as training

    lie, counted = set(), []

    def noted(of, array):
        laid = lay_rows(of, array)
        lie.add((laid.shape[0], laid.sharding.shard_shape(laid.shape)[0]))
        return laid

    monkeypatch.setattr(training, "lay_rows", noted)
    how = dataclasses.replace(TRAIN, steps=2, rows=3)
    laid = shard(model, make_mesh({"data": 2, "model": 2, "sub": 2}))
    found = []
    for name, of in (("alone", model), ("over", laid)):
        gated = GatedModel(of, PATH)
        found.append(train(of, gated, excerpts, tmp_path / name, how, on_step=counted.append))
    assert lie == {(3, 3), (4, 2)}
    assert counted == [36] * 4
    alone, over = found
    np.testing.assert_allclose(over.history["loss"], alone.history["loss"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(over.parameters, alone.parameters, rtol=0, atol=1e-6)


def test_a_device_of_a_mesh_makes_the_logits_of_its_own_rows_for_the_loss(model):
    """Every device made those of all rows."""
    excerpts, weights = np.asarray(tiny.tokens_of(model, (8, 33))), np.ones((8, 32), np.float32)
    found = []
    for of in (model, shard(model, make_mesh({"data": 8}))):
        stream = residuals(of, lay_rows(of, excerpts))[:, 1:]
        arguments = OutputHead(of), stream, stream + 0.1, lay_rows(of, weights)
        work = Module(mean_divergence.lower(*arguments).compile().as_text()).flops()
        found.append((work, *map(np.asarray, mean_divergence(*arguments))))
    (alone, *values), (over, *others) = found
    assert over < 1.05 * alone / 8
    for one, many in zip(values, others, strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"steps": 0, "rows": 0}, ["steps=0", "rows=0"]),
        ({"learning_rate": 0.0}, ["learning_rate=0"]),
        ({"warmup_share": 2.0}, ["warmup_share=2"]),
        ({"seed": -1}, ["seed=-1"]),
    ],
)
def test_impossible_training_is_refused(changes, mentions):
    problems = " ".join(map(str, dataclasses.replace(TRAIN, **changes).problems()))
    for mention in mentions:
        assert mention in problems


MASK = SinkMask.from_text("L0: 6f | L1: 2s(first) f 3w(1,4) | L2: 3s(zero) c(1,2) 2f")


@pytest.fixture(scope="module")
def repair(model):
    return Repair(specialize(model, MASK))


def test_a_repair_changes_output_slices_and_biases_alone(model, repair, excerpts):
    assert sorted(repair.start) == [
        "layers.1.attention.first_o",
        "layers.1.attention.mean_bias",
        "layers.1.attention.o",
        "layers.2.attention.mean_bias",
        "layers.2.attention.o",
        "layers.2.attention.other_o",
    ]
    tokens = jnp.asarray(excerpts)
    expected = model.logits(residuals(specialize(model, MASK), tokens))
    found = model.logits(repair.residuals(repair.start, tokens))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    bias = jnp.arange(40, dtype=jnp.float32)
    moved = repair.residuals({**repair.start, "layers.2.attention.mean_bias": bias}, tokens)
    np.testing.assert_array_equal(moved[:, 0], repair.residuals(repair.start, tokens)[:, 0])
    assert np.abs(moved - repair.residuals(repair.start, tokens)).max() > 1


def test_a_repair_lowers_the_kl_and_is_kept(model, repair, excerpts, tmp_path):
    settings = dataclasses.replace(TRAIN, learning_rate=0.02, steps=12, rows=5)
    trained = distil(
        model, repair.residuals, dict(repair.start), excerpts, settings, tmp_path / "c"
    )
    assert trained.history["kl"][-1] < 0.7 * trained.history["kl"][0]
    file, digests = tmp_path / "mask.json", {"mask_digest": MASK.digest, "model_digest": "m"}
    save_repair(file, trained.parameters, **digests)
    loaded = load_repair(file, **digests)
    for name, value in trained.parameters.items():
        np.testing.assert_array_equal(loaded[name], value)
    with pytest.raises(InputError, match="another mask"):
        load_repair(file, mask_digest="other", model_digest="m")
    kept = tmp_path / "mask.repair.safetensors"
    content = kept.read_bytes()
    kept.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(InputError, match="it is damaged: its numbers are not those that"):
        load_repair(file, **digests)
    kept.write_bytes(b"nothing")
    with pytest.raises(InputError, match="sinkjax repair"):
        load_repair(file, **digests)
    with pytest.raises(InputError, match=r"layers\.1\.attention\.o"):
        repair.model({k: v for k, v in loaded.items() if k != "layers.1.attention.o"})


def test_a_repair_is_the_same_over_a_mesh_whose_chips_have_heads_in_another_order(tmp_path):
    """Its numbers were by heads as they lie over the mesh, and on one device those of others."""
    model = tiny.make(num_heads=8, num_kv_heads=4, num_layers=2, vocab_size=64)
    mask = SinkMask.from_text("L0: s(first) f w(1,4) f w(1,4) f s(first) f | L1: 8f")
    meshes = {"data": 4, "model": 2}, {"data": 2, "model": 4}, {"data": 2, "model": 2, "sub": 2}
    laid = [shard(model, make_mesh(mesh)) for mesh in meshes]
    alone, *over = (Repair(specialize(of, mask)) for of in (model, *laid))
    draw = np.random.default_rng(5)
    changes = {
        name: value + draw.normal(scale=0.3, size=value.shape).astype(np.float32)
        for name, value in alone.start.items()
    }
    file, digests = tmp_path / "mask.json", {"mask_digest": "mask", "model_digest": "model"}
    save_repair(file, changes, **digests)
    kept, tokens = load_repair(file, **digests), np.asarray(tiny.tokens_of(model, (4, 12)))
    wanted = np.asarray(alone.residuals(kept, jnp.asarray(tokens)))
    assert np.abs(wanted - alone.residuals(alone.start, jnp.asarray(tokens))).max() > 0.1
    for of, repair in zip(laid, over, strict=True):
        for name, value in alone.start.items():
            np.testing.assert_array_equal(repair.start[name], value)
        found = repair.residuals(kept, lay_rows(of, tokens))
        # Of values up to 13 that is float32's own: the baseline's differ by as much.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_there_is_nothing_to_repair_where_all_heads_are_full(model):
    with pytest.raises(InputError, match="nothing to repair"):
        Repair(specialize(model, SinkMask.full(model.config)))


def arguments(model, folder, /, **more):
    flags = {
        "model": model,
        "lengths": "12",
        "choose_excerpts": 2,
        "judge_excerpts": 2,
        "steps": 2,
        "output_dir": folder,
        **more,
    }
    return as_flags(flags)


def test_gates_from_their_flags_to_masks(small, tmp_path, capsys):
    flags = arguments(
        small, tmp_path, paths="sink(mean)", units="group", shares="0.5", control_draws=1
    )
    run_main("experiments.gates", *flags)
    out = capsys.readouterr().out
    _, records = read_records(tmp_path)
    assert [record["kind"] for record in records] == ["training", "gates", "gates", "gates"]
    training, *judged = records
    assert not {"asked", "judged"} & training.keys()  # as versions without tasks wrote them
    assert np.shape(training["result"]["gates"]) == (2, 2)
    assert len(training["result"]["loss"]) == 2
    for record in judged:
        assert record["result"]["heads"]["sink"] == 6
        assert f"{record['result']['kl']['value']:.4f}" in out
    (png,) = (tmp_path / "figures").iterdir()
    assert png.read_bytes().startswith(b"\x89PNG")
    html = (tmp_path / "report.html").read_text()
    assert f"{judged[0]['result']['kl']['value']:.4f}" in html
    assert "data:image/png" in html
    saved = load_mask(tmp_path / "masks" / "gates-0.5.json")
    assert str(saved.mask) == judged[0]["result"]["mask"]
    assert saved.fills.any()
    assert saved.provenance.selection["method"] == "learned gates"
    run_main("experiments.gates", *flags)
    assert read_records(tmp_path)[1] == records

    repaired = arguments(small, tmp_path / "repair")
    run_main("experiments.repair", f"--mask={tmp_path / 'masks' / 'gates-0.5.json'}", *repaired)
    _, (_, before, after) = read_records(tmp_path / "repair")
    assert not before["repaired"]
    assert after["repaired"]
    # Both judge the same excerpts: by the selection above, by the specialized model here.
    found = before["result"]["kl"]["value"]
    np.testing.assert_allclose(found, judged[0]["result"]["kl"]["value"], rtol=1e-3)
    changes = load_repair(
        tmp_path / "repair" / "gates-0.5.json",
        mask_digest=saved.mask.digest,
        model_digest=saved.provenance.model_digest,
    )
    assert any(name.endswith("mean_bias") for name in changes)


BAD = {
    "path": ("gates", {"paths": "full"}, ["--paths=full"]),
    "paths": ("gates", {"paths": "sink(zero),sink(first)"}, ["give one path"]),
    "share": ("gates", {"shares": "1.5", "price": "-1"}, ["--shares=1.5", "--price=-1"]),
    "tasks": (
        "gates",
        {"train_on": "tasks", "judge_text": "", "nll_budget": 0},
        ["--tasks: train_on=tasks needs some", "--judge_text: give", "--nll_budget=0"],
    ),
    "lengths": ("gates", {"lengths": "8,12"}, ["--lengths=8,12"]),
    "steps": ("gates", {"steps": "0"}, ["steps=0"]),
    "endless": ("gates", {"price": "inf", "learning_rate": "inf"}, ["--price=inf", "_rate=inf"]),
    "no mask": ("repair", {}, ["--mask: it is missing"]),
    "no heads": ("repair", {"mask": "L0-1: 6f"}, ["--mask=L0-1: 6f: it masks no head"]),
    "lengths of repair": ("repair", {"mask": "L0-1: 6w(1,4)", "lengths": "8,12"}, ["--lengths"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_flags_are_refused_before_any_work(what, small, tmp_path):
    script, more, mentions = BAD[what]
    with pytest.raises(InputError) as error:
        run_main(f"experiments.{script}", *arguments(small, tmp_path / "out", **more))
    for mention in mentions:
        assert mention in str(error.value)
    assert not (tmp_path / "out").exists()
