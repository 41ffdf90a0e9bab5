"""Texts of meshes, and several processes that are joined."""

import jax
import pytest

from sinkjax import InputError
from sinkjax.distributed import first, make_mesh, parse_mesh, start, to_host

pytestmark = pytest.mark.quick


def test_a_mesh_is_read_from_its_text():
    assert parse_mesh("model:4, data:2") == {"model": 4, "data": 2}
    assert parse_mesh("auto") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model",
        "model:0",
        "model:-1",
        "model:x",
        "rows:2",
        "data:2,data:4",
        "data:²",
        "data:" + "9" * 5000,
        "data:" + "0" * 5000 + "1",
    ],
)
def test_what_is_no_mesh_is_refused_with_what_is(text):
    with pytest.raises(InputError, match=r"mesh=.*: give auto, or sizes such as model:4,data:2"):
        parse_mesh(text)


def test_a_mesh_has_all_devices_with_those_of_a_model_beside_each_other():
    mesh = make_mesh({"model": 4, "data": 2})
    assert mesh.axis_names == ("data", "model")
    assert mesh.devices.tolist() == [jax.devices()[:4], jax.devices()[4:]]
    with pytest.raises(InputError, match=r"model:4: it is of 4 devices and there are 8; data:8"):
        make_mesh({"model": 4})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("host:1", None, None), "coordinator=host:1: give the number of processes with it"),
        (("host:1", 2, 2), "coordinator=host:1: give the number of processes with it"),
        (("host:1", 10**30, 0), "coordinator=host:1: give the number of processes with it"),
        (("10.0.0.1", 2, 0), r"coordinator=10.0.0.1: it has no port.* host:port"),
        (("10.0.0.1:", 2, 1), r"coordinator=10.0.0.1:: it has no port"),
        (("", 2, 1), "coordinator=: it has no port"),
        (("host:65536", 2, 1), "coordinator=host:65536: it has no port, which is a number; give"),
        ((None, 2, 0), "coordinator: name the first process's host and port"),
        (("auto", 2, 0), "coordinator=auto: name the first process's host and port"),
    ],
)
def test_a_process_is_not_joined_by_half_of_what_it_takes(arguments, text):
    with pytest.raises(InputError, match=text):
        start(*arguments)


def test_a_process_alone_is_not_joined_to_any(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    start()
    assert not jax.distributed.is_initialized()
    assert first(lambda: 3) == 3
    assert to_host({"a": jax.numpy.arange(3)})["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("TPU_WORKER_HOSTNAMES", "10.0.0.1,10.0.0.2"),
    ],
)
def test_a_process_that_the_environment_says_has_others_is_joined(name, value, monkeypatch):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *by: joined.append(by))
    monkeypatch.setenv(name, value)
    start()
    start("host:1", 2, 1)
    assert joined == [(), ("host:1", 2, 1)]
