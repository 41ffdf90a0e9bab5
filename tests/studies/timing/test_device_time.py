"""The profiler's clock, on what XLA's CPU backend leaves in a trace."""

import time
import types

import jax
import jax.numpy as jnp
import pytest

from sinkjax.studies.timing.device_time import device_seconds, trace
from sinkjax.studies.timing.pairs import Call

WAIT = 0.2


def products(count):
    """So many products one after the other, behind a wait that is the host's alone."""
    x = jnp.full((512, 512), 1e-3)

    def chain(x):
        y = x
        for _ in range(count):
            y = y @ x
        return y

    compiled = jax.jit(chain).lower(x).compile()

    def run():
        time.sleep(WAIT)
        compiled(x).block_until_ready()

    return Call(run)


def test_what_the_host_waits_for_is_not_the_device_time(tmp_path):
    calls = {"four": products(4), "sixteen": products(16)}
    samples = device_seconds(trace(calls, 3, tmp_path))
    assert {name: len(seconds) for name, seconds in samples.items()} == {"four": 3, "sixteen": 3}
    four, sixteen = (min(samples[name]) for name in ("four", "sixteen"))
    assert 4 * 2 * 512**3 / 1e13 < four < WAIT
    assert 1.5 < sixteen / four < 10


def test_a_call_without_the_device_is_refused():
    with pytest.raises(ValueError, match="no work of a device in a run of idle"):
        device_seconds(trace({"idle": Call(lambda: None)}, 1, None))


def plane(name, **lines):
    """As `ProfileData` has them: {line: [(name, start, duration, stats)]}."""
    return types.SimpleNamespace(
        name=name,
        lines=[
            types.SimpleNamespace(
                name=line.replace("_", " "),
                events=[
                    types.SimpleNamespace(name=n, start_ns=s, duration_ns=d, stats=stats.items())
                    for n, s, d, stats in events
                ],
            )
            for line, events in lines.items()
        ],
    )


HOST = plane(
    "/host:CPU",
    python=[("sinkjax: a", 0.0, 100.0, {}), ("sinkjax: b", 200.0, 100.0, {})],
    worker=[("dot", 0.0, 90.0, {"hlo_op": "dot"})],
)


def seconds_of(*planes):
    samples = device_seconds(types.SimpleNamespace(planes=planes))
    return {name: [1e9 * s for s in seconds] for name, seconds in samples.items()}


def test_kernels_that_overlap_on_a_gpu_count_once_and_copies_do_not():
    op = {"hlo_op": "fusion"}
    gpu = plane(
        "/device:GPU:0",
        Stream_1=[("k", 10.0, 20.0, op), ("MemcpyH2D", 60.0, 5.0, {}), ("k", 210.0, 10.0, op)],
        Stream_2=[("k", 20.0, 20.0, op), ("k", 90.0, 30.0, op)],
    )
    assert seconds_of(HOST, gpu) == {"a": [pytest.approx(40)], "b": [pytest.approx(10)]}


def test_whole_programs_count_on_a_tpu():
    tpu = plane(
        "/device:TPU:0",
        XLA_Modules=[("jit_f", 10.0, 70.0, {}), ("jit_f", 220.0, 50.0, {})],
        XLA_Ops=[("fusion", 10.0, 1.0, {"hlo_op": "fusion"})],
    )
    assert seconds_of(HOST, tpu) == {"a": [pytest.approx(70)], "b": [pytest.approx(50)]}
