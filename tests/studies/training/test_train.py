"""Distillation: its loss and gradient, prices, stops, damage, and rows over a mesh."""

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

from sinkjax import InputError, Window
from sinkjax.checkpoint import orbax
from sinkjax.distributed import make_mesh
from sinkjax.files import check_path
from sinkjax.instruments.token_losses import OutputHead, residuals
from sinkjax.models.sharding import lay_rows, mesh_of, shard
from sinkjax.programs.hlo import Module
from sinkjax.studies.gates.gates import GatedModel, gates_of, start_gates
from sinkjax.studies.training.train import TrainSettings, distil, mean_divergence

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
    stream, back = jax.vjp(lambda p: gated.residuals(p, tokens)[:, 1:], logits)
    head = OutputHead(model)
    kl, of_stream = mean_divergence(head, residuals(model, tokens)[:, 1:], stream, weights)
    np.testing.assert_allclose(kl, expected, rtol=1e-4)
    np.testing.assert_allclose(back(of_stream)[0], gradient, atol=1e-6)
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
    trained = []
    for name, of in (("alone", model), ("over", laid)):
        gated = GatedModel(of, PATH)
        trained.append(train(of, gated, excerpts, tmp_path / name, how, on_step=counted.append))
    assert lie == {(3, 3), (4, 2)}
    assert counted == [36] * 4
    alone, over = trained
    np.testing.assert_allclose(over.history["loss"], alone.history["loss"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(over.parameters, alone.parameters, rtol=0, atol=1e-6)


def test_a_device_of_a_mesh_makes_the_logits_of_its_own_rows_for_the_loss(model):
    """Every device made those of all rows."""
    excerpts, weights = np.asarray(tiny.tokens_of(model, (8, 33))), np.ones((8, 32), np.float32)
    measured = []
    for of in (model, shard(model, make_mesh({"data": 8}))):
        stream = residuals(of, lay_rows(of, excerpts))[:, 1:]
        arguments = OutputHead(of), stream, stream + 0.1, lay_rows(of, weights)
        work = Module(mean_divergence.lower(*arguments).compile().as_text()).flops()
        measured.append((work, *map(np.asarray, mean_divergence(*arguments))))
    (alone, *values), (over, *others) = measured
    assert over < 1.05 * alone / 8
    for value, other in zip(values, others, strict=True):
        np.testing.assert_allclose(other, value, rtol=1e-4, atol=1e-6)


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
