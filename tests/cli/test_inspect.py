"""inspect from flags to records: what is compiled is what was asked for, and nothing more."""

import dataclasses
import importlib.util
import json
import os
import re

import pytest
from scripts import as_flags, run_main, start

import sinkjax
from sinkjax import InputError, SinkMask
from sinkjax.models.config import LlamaConfig
from sinkjax.models.hf_config import to_hf_config
from sinkjax.programs.targets import WITHOUT_TPU

pytestmark = pytest.mark.default_compilation

INSPECT = "experiments.inspect"
CONFIG = LlamaConfig(
    vocab_size=61,
    num_layers=2,
    num_heads=6,
    num_kv_heads=3,
    head_dim=8,
    embed_dim=40,
    mlp_dim=48,
    max_length=64,
    norm_eps=1e-5,
)
MASK = "L0: 4f 2w(1,3) | L1: f c(0,1) 2s(zero) s(first) f"


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """A model's shape, without weights."""
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(json.dumps(to_hf_config(CONFIG)))
    return folder


def arguments(shape, output, /, **more) -> list[str]:
    flags = {
        "model": f"shape:{shape}",
        "mask": MASK,
        "lengths": 16,
        "max_length": 24,
        "output": output,
        **more,
    }
    return as_flags(flags)


def read(output):
    """Records by program and executable."""
    records = [json.loads(line) for line in output.read_text().splitlines()]
    return {(r["program"], r["name"]): r for r in records}


def inspect(shape, output, /, **more):
    run_main(INSPECT, *arguments(shape, output, **more))
    return read(output)


@pytest.fixture(scope="module")
def here(shape, tmp_path_factory):
    """The records of the baseline and of the mask, compiled for this machine."""
    return inspect(shape, tmp_path_factory.mktemp("out") / "here.jsonl")


def check_agreement(records):
    """Every executable by path and in total, compiled and by formula."""
    assert list(records) == [
        (program, name) for program in ("baseline", "mask") for name in ("prefill 16", "decode")
    ]
    for record in records.values():
        assert record["uncounted"] == []
        assert record["compiled"] == record["by_hand"]


def test_compiled_costs_are_the_formulas(here):
    check_agreement(here)
    for name in ("prefill 16", "decode"):
        assert here["baseline", name]["mask"] == "L0-1: 6f"
        assert here["mask", name]["mask_digest"] == SinkMask.from_text(MASK).digest
        baseline, mask = (here[program, name]["compiled"] for program in ("baseline", "mask"))
        assert all(mask[path]["cache"] for path in ("full", "window", "sink"))
        assert not any(sum(baseline[path].values()) for path in ("window", "copy", "sink"))
        for column in ("operations", "parameters", "cache"):
            assert mask["total"][column] < baseline["total"][column]
            assert mask["rest"][column] == baseline["rest"][column]


def test_what_a_record_says_beside_the_costs(here):
    for (program, _), record in here.items():
        assert record["kind"] == "executable"
        assert LlamaConfig.from_dict(record["config"]) == CONFIG
        assert record["lowering_seconds"] > 0
        assert record["compile_seconds"] > 0
        assert record["from_cold"]
        memory = record["memory"]
        costs = record["compiled"]["total"]
        assert memory["arguments"] >= costs["parameters"]
        assert memory["peak"] >= costs["parameters"] + costs["cache"]
        assert record["xla"]["operations"] > 0
        assert program in ("baseline", "mask")


def test_work_that_a_mask_should_have_removed_is_found_out(shape, tmp_path, monkeypatch, capsys):
    """A program that computes one head more than its mask says does not pass for the mask's."""
    honest = sinkjax.specialize
    more = SinkMask.from_text("L0: 6f | L1: 2s(zero) 4f")

    def one_head_left(model, mask, **options):
        built = honest(model, more if mask != SinkMask.full(CONFIG) else mask, **options)
        built.mask = mask
        return built

    monkeypatch.setattr("sinkjax.accounts.inspect.specialize", one_head_left)
    records = inspect(shape, tmp_path / "out.jsonl", mask="L0: 6f | L1: 3s(zero) 3f")
    out = capsys.readouterr().out
    for name in ("prefill 16", "decode"):
        compiled, by_hand = (records["mask", name][how] for how in ("compiled", "by_hand"))
        for row in ("full", "total"):
            assert compiled[row]["operations"] > by_hand[row]["operations"]
            assert compiled[row]["parameters"] > by_hand[row]["parameters"]
        assert f"{name}, 1 x, float32, cache for 24 tokens" in out
        for costs in (compiled["total"], by_hand["total"]):
            assert f"{costs['operations'] / 1000:.2f}"[:5] in out
    assert out.count("differ from the formulas'") == 2
    assert "4 executables for cpu" in out
    assert f"records: {tmp_path}/out.jsonl" in out


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra targets-tpu")
def test_programs_for_a_tpu_that_is_not_here_come_out_the_same_and_quietly(shape, tmp_path):
    """In a process of its own, which nothing has told that there is no TPU."""
    output = tmp_path / "tpu.jsonl"
    more = {"targets": "tpu:v5e", "dtype": "bfloat16", "layers": "scanned"}
    untold = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", *WITHOUT_TPU)}
    process = start(INSPECT, *arguments(shape, output, **more), env=untold)
    _, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    records = read(output)
    check_agreement(records)
    for record in records.values():
        assert record["device"] == "TPU v5 lite"
        assert record["dtype"] == "bfloat16"


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra targets-tpu")
def test_programs_for_eight_tpus_that_are_not_here(tmp_path):
    """Each has a share, and a layer has two sums; one too large is refused in a line."""
    sizes = {"num_heads": 8, "num_kv_heads": 4, "vocab_size": 64}
    config = to_hf_config(dataclasses.replace(CONFIG, **sizes))
    (tmp_path / "config.json").write_text(json.dumps(config))
    output = tmp_path / "tpu.jsonl"
    more = {"targets": "tpu:v5e:2x4", "mesh": "model:4,data:2", "batch_sizes": 4}
    mask = "L0: s(first) f s(first) f s(first) f s(first) f | L1: 8f"
    process = start(INSPECT, *arguments(tmp_path, output, **more, mask=mask))
    out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert "a chip of data:2,model:4 on TPU v5 lite, 4 x, float32" in out
    records = read(output)
    baseline, masked = (records[name, "decode"] for name in ("baseline", "mask"))
    # Of 24 slots, keys and values of one head for two rows in two layers, and two lengths.
    assert baseline["cache"] == 2 * 2 * 2 * 24 * 8 * 4 + 8
    assert masked["parameters"] < baseline["parameters"]
    for layer in ("layer_0", "layer_1"):
        sums = masked["collectives"][layer]["all-reduce"]
        assert sums == baseline["collectives"][layer]["all-reduce"]
        assert sums["count"] == 2
    (fits,) = re.findall("tpu:v5e has .*fit", out)
    assert fits.startswith("tpu:v5e has 16.00 GB, of which ")
    assert fits.endswith(" takes <0.1%, the most: they fit")
    assert out.count("layer_0   all-reduce") == 4
    assert out.count("saved on a chip") == out.count("saved, nominal") == 2
    assert masked["nominal"]["parameters"] < baseline["nominal"]["parameters"]

    more = {"targets": "tpu:v5e:2x4", "mesh": "data:8", "batch_sizes": 2**22}
    process = start(INSPECT, *arguments(tmp_path, output, **more, mask=mask))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert err.startswith("error: prefill 16 does not fit the device (RESOURCE_EXHAUSTED: ")
    assert re.search(r"\(\d\d\.\d\dG\) exceeds available HBM \(15\.75G\)", err), err
    assert err.count("\n") == 1


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra targets-tpu")
def test_a_chip_too_small_for_the_baseline_is_said_by_how_much(tmp_path, capsys):
    """Of nearly as many bytes as are its parameters and cache, here counted by hand."""
    heads, size, rows, slots = 8, 128, 32, 124_416
    sizes = {"num_heads": heads, "num_kv_heads": heads, "head_dim": size, "embed_dim": size}
    config = dataclasses.replace(CONFIG, **sizes, num_layers=1, max_length=slots)
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(config)))
    more = {"targets": "tpu:v5e", "dtype": "bfloat16", "batch_sizes": rows, "max_length": slots}
    mask = "L0: 2f 6w(1,3)"
    records = inspect(tmp_path, tmp_path / "out.jsonl", **more, mask=mask)
    said = " ".join(capsys.readouterr().out.split())
    assert "tpu:v5e, of 16.00 GB, is too small for " in said
    cache = 2 * 2 * rows * slots * heads * size
    at_least = cache + 2 * 4 * size * size * heads - 16 * 10**9
    for program, name in records:
        over = re.search(rf"{name} of the {program} by ([\d.]+) MB[,.]", said)
        assert (over is None) == (program == "mask")
        assert over is None or at_least <= float(over[1]) * 1e6 < at_least + 0.02 * cache

    with pytest.raises(InputError) as error:
        inspect(tmp_path, tmp_path / "out.jsonl", **{**more, "batch_sizes": 2 * rows}, mask=mask)
    assert re.search(r" does not fit the device \(.* exceeds available HBM", str(error.value))


def test_what_chips_along_an_axis_hold_alike_is_said(tmp_path, capsys):
    """Along `sub`, with rows that it does not divide."""
    sizes = {"num_heads": 8, "num_kv_heads": 2, "vocab_size": 64}
    config = to_hf_config(dataclasses.replace(CONFIG, **sizes))
    (tmp_path / "config.json").write_text(json.dumps(config))
    mask = "L0: s(first) f w(1,3) f s(first) f w(1,3) f | L1: 8f"
    more = {"mesh": "data:2,model:2,sub:2", "batch_sizes": 2, "mask": mask}
    records = inspect(tmp_path, tmp_path / "out.jsonl", **more)
    baseline, masked = (records[name, "decode"] for name in ("baseline", "mask"))
    layer, lengths = 2 * 24 * 8 * 4, 4  # keys and values of a head for a row
    bias = 40 * 4
    assert baseline["cache"] == 2 * layer + lengths
    assert baseline["cache_whole"] == {"data": 0, "model": lengths, "sub": 2 * layer + lengths}
    assert masked["cache"] == masked["cache_whole"]["sub"] == 2 * layer + lengths + bias
    assert (baseline["by_sub"], masked["by_sub"]) == ([], [0])  # by heads of two paths in a group
    out = capsys.readouterr().out
    assert "In 1 layers of the mask chips along sub divide rows in the place of query" in out
    of_heads = "layers.attention.k 2.560 kB, layers.attention.v 2.560 kB"
    assert f"Alike on the 2 chips along sub, baseline: {of_heads}." in out
    assert "Alike on the 2 chips along sub, baseline: 3.076 kB of the cache." in out
    assert "Alike on the 2 chips along sub, mask: " in out
    assert "along data" not in out


@pytest.mark.skipif(
    bool(importlib.util.find_spec("jax_cuda12_plugin")), reason="the wheels are there"
)
def test_missing_wheels_are_one_line_that_says_how_to_get_them(shape, tmp_path):
    with pytest.raises(InputError) as error:
        inspect(shape, tmp_path / "out.jsonl", targets="cuda:h100")
    (problem,) = map(str, error.value.problems)
    assert "--targets=cuda:h100" in problem
    assert "pip install -e '.[targets-cuda]'" in problem


@pytest.mark.quick
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"targets": "tpu:v99"}, ["--targets=tpu:v99: ", "tpu:v5e"]),
        ({"mask": ""}, ["--mask is missing"]),
        ({"mask": "L0: 6f"}, ["--mask=L0: 6f", "1 layers of 6 heads"]),
        ({"model": "shape:none"}, ["--model=shape:none", "llama-3.2-1b"]),
        ({"attention": "splash"}, ["--attention=splash: ", "16 tokens", "on a cpu", "xla"]),
        ({"lengths": "16,x"}, ["--lengths: 'x' is no whole number"]),
        (
            {"lengths": 30, "batch_sizes": 0, "max_length": 20},
            ["--batch_sizes=0: ", "--lengths=30: "],
        ),
    ],
)
def test_bad_flags_are_refused(more, said, shape, tmp_path):
    with pytest.raises(InputError) as error:
        inspect(shape, tmp_path / "out.jsonl", **more)
    for part in said:
        assert part in str(error.value)


def test_a_file_that_cannot_be_written_is_refused_before_any_work(shape, tmp_path):
    with pytest.raises(InputError, match="in a folder that exists"):
        inspect(shape, tmp_path / "none" / "out.jsonl")
    (tmp_path / "device").symlink_to("/dev/null")
    with pytest.raises(InputError, match=r"device: it cannot be written \(it is a pipe or a dev"):
        inspect(shape, tmp_path / "device")
