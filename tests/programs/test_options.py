"""What computes attention, by name: what a name means, what is refused, what is compiled."""

import dataclasses
import importlib.util

import jax.numpy as jnp
import pytest
import tiny
from masks import problems_of

from sinkjax.accounts.inspect import inspect_program
from sinkjax.cli.programs import program_tables
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Window
from sinkjax.models.abstract import abstract_model
from sinkjax.programs.compile import compile
from sinkjax.programs.options import choose_attention
from sinkjax.programs.targets import WITHOUT_TPU, target_device
from sinkjax.specialize.build import specialize

CONFIG = dataclasses.replace(
    tiny.make(num_layers=1).config, num_layers=2, num_heads=4, head_dim=16, max_length=512
)


def names(name, platform, lengths=(64, 128), devices=1, dtype=jnp.bfloat16, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    chosen = choose_attention(name, platform, devices, lengths, config, jnp.dtype(dtype))
    return {length: kernel.name for length, kernel in chosen.items()}


def test_auto_is_the_platforms_kernel_where_it_can_compute():
    assert names("auto", "tpu") == {64: "xla", 128: "splash"}
    assert names("auto", "gpu") == {64: "xla", 128: "pallas"}
    assert names("auto", "cpu") == {64: "xla", 128: "xla"}
    assert names("auto", "tpu", devices=2) == {64: "xla", 128: "xla"}
    assert names("auto", "gpu", head_dim=80) == {64: "xla", 128: "xla"}


def test_a_name_is_what_it_says_or_refused_for_every_reason_at_once():
    assert names("splash", "tpu", [128, 640]) == {128: "splash", 640: "splash"}
    assert names("xla", "gpu", devices=8) == {64: "xla", 128: "xla"}
    problems = problems_of(names, "pallas", "tpu", [100, 200], 2, jnp.float16, head_dim=80)
    wanted = ("100 tokens", "float16", "size 80", "on a tpu", "over 2 devices", "200 tokens")
    for part, problem in zip(wanted, problems, strict=True):
        assert part in problem
        assert problem.startswith("attention=pallas: ")
        assert "choose xla, or auto" in problem
    (problem,) = problems_of(names, "flash", "tpu")
    assert problem == "attention=flash: allowed are xla, splash, pallas, auto"


TARGETS = [("tpu:v5e", "splash", "libtpu"), ("cuda:h100", "pallas", "jax_cuda12_plugin")]


@pytest.mark.parametrize(("target", "name", "wheel"), TARGETS, ids=lambda value: value)
def test_a_kernel_is_compiled_for_a_chip_that_is_not_here_and_counted(
    target, name, wheel, monkeypatch
):
    """One call a part, but for the head that the second layer copies, and for the copy."""
    if not importlib.util.find_spec(wheel):
        pytest.skip(f"needs {wheel}")
    for variable, value in WITHOUT_TPU.items():
        monkeypatch.setenv(variable, value)
    mask = SinkMask.from_text("L0: 4f | L1: c(0,0) w(4,50) f w(4,50)")
    program = compile(
        specialize(abstract_model(CONFIG, jnp.bfloat16), mask),
        batch_size=2,
        prefill_lengths=(64, 512),
        max_length=512,
        attention="auto",
        device=target_device(target),
    )
    assert {length: kernel.name for length, kernel in program.attention.items()} == {
        64: "xla",
        512: name,
    }
    short, long, decode = inspect_program(program)
    assert [record["attention"] for record in (short, long, decode)] == ["xla", name, "xla"]
    for record in (short, long, decode):
        assert record["uncounted"] == []
        assert record["compiled"] == record["by_hand"]
    assert [len(executable.module.calls) for executable in program.executables] == [0, 5, 0]
    full, window = (program.attention[512].pairs(path, 512) for path in (Full(), Window(4, 50)))
    a_pair = 2 * 2 * 16  # FLOPs: two products, a multiply and an add, H columns
    assert long["kernel"]["operations"] == a_pair * 2 * (4 * full + 2 * window)
    needed = 512 * 513 // 2, 54 * 55 // 2 + (512 - 54) * 54
    assert long["kernel"]["needed"] == a_pair * 2 * (4 * needed[0] + 2 * needed[1])
    said = {"device": target, "target": target, "program": "mask"}
    shown = [{**record, **said} for record in (short, long, decode)]
    tables = program_tables(shown, shown)
    assert [f"attention: {name}" in table.title for table in tables[:3]] == [False, True, False]
    assert [f"the kernel {name} computes" in " ".join(t.notes) for t in tables[:3]] == [
        False,
        True,
        False,
    ]
