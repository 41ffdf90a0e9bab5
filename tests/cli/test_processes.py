"""Every command over a mesh, of one process and of two: what one device finds.

Each study runs whole on one device, over eight of them, and in two real processes with a device
each, one command after another: most of the time is for compiling.
"""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time

import gguf
import hf
import jax
import numpy as np
import pytest
import tiny as tiny_model
from alike import assert_same_results
from flax import nnx
from gguf_files import Type, add_llama, finish
from scripts import FEW, MASK, ROOT, SMALL, run_main

import sinkjax
from sinkjax import Sink, SinkMask
from sinkjax.errors import InputError
from sinkjax.studies.results import read_records

pytestmark = pytest.mark.usefixtures("figures_are_blank")

TIMED = [
    *("--mask=L0-1: 3w(1,4) 3s(zero)", "--batch_sizes=2", "--lengths=8", "--generated=4"),
    *("--rounds=2", "--warmup=1"),
]
PROMPT = "the sea was calm and the old man"
TRAINED = [
    *(*FEW, "--lengths=12"),
    *("--steps=2", "--rows=2", "--save_every=1"),
]
STUDIES = {
    "sweep": [
        *("--lengths=2,9", "--thresholds=0.3", "--num_prompts=3"),
        "--definitions=mean,log_odds",
    ],
    "quality": ["--lengths=12", "--num_excerpts=3", "--continuation_tokens=4", MASK],
    "gates": [*TRAINED, "--shares=0.5", "--paths=window(1,4)"],
    "repair": [*TRAINED, MASK],
    "retrieval": [
        *("--tasks=fwe,niah_prose", "--lengths=240", "--depths=0.5", "--num_excerpts=2"),
        MASK,
    ],
    **SMALL,
    "search": [
        *("--lengths=24", "--kl_budget=2", "--paths=window(1,4)", "--rank_excerpts=2"),
        *("--hold_excerpts=3", "--judge_excerpts=3", "--generated=4", "--control_draws=1"),
        *("--growth_rounds=2", "--tries=2"),
    ],
}
MESH, MESHES = "model:2,data:4", {"quality": "neurons:2,model:2,data:2", "sweep": "data:8"}
"""Of a study, and of some by themselves."""


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer):
    """A random Llama with room for the tasks of retrieval.

    Its logits are small: a mesh sums in another order, and a KL's error grows with them.
    """
    folder = tmp_path_factory.mktemp("model")
    how = {"max_position_embeddings": 256, "initializer_range": 0.2}
    return hf.save_small(folder, small_tokenizer, **how)


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """The folder of a study's run on one device, by the study's name: each is run once."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        flags = (f"--model={model}", *STUDIES[name], f"--output_dir={folder}")
        run_main(f"experiments.{name}", *flags)
        return folder

    return run


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_over_a_mesh_finds_what_it_finds_on_one_device(name, model, alone, tmp_path):
    over = MESHES.get(name, MESH)
    flags = (f"--model={model}", f"--mesh={over}", f"--output_dir={tmp_path}")
    run_main(f"experiments.{name}", *STUDIES[name], *flags)
    records, wanted = (read_records(folder)[1] for folder in (tmp_path, alone(name)))
    assert {record["environment"].get("mesh") for record in records} == {over}
    assert_same_results(records, wanted)


KILLED = "sweep", "quality"
TOOLS = {
    "generate": f"--prompt={PROMPT}",
    "convert": "--output_dir=/dev/null/none",
    "inspect": MASK,
}


@pytest.mark.parametrize("name", [*STUDIES, "timing", *TOOLS])
def test_a_bad_mesh_is_refused_by_every_command(name, model, tmp_path):
    for mesh, text in {
        "model:4": "--mesh=model:4: model:4 does not divide 2 key/value heads; data:2",
        "model:2": "--mesh=model:2: it is of 2 devices and there are 8; data:8",
        "rows:8": "--mesh=rows:8: give auto, or sizes such as",
    }.items():
        where = TOOLS.get(name, f"--output_dir={tmp_path / 'none'}")
        flags = [f"--model={model}", f"--mesh={mesh}", where]
        with pytest.raises(InputError) as error:
            run_main(f"experiments.{name}", *STUDIES.get(name, ()), *flags)
        assert text in str(error.value)
        assert not (tmp_path / "none").exists()


_SLURMS = range(61440, 65536)
"""Ports, of which JAX takes the one that the number of a job of SLURM says."""


def free_port(ports):
    """One of these ports that nothing listens on."""
    for port in ports:
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("localhost", port))
            return free.getsockname()[1]
    raise AssertionError(f"none of {ports} is free")


def slurm_variables(port, index):
    """What SLURM tells a process of two on one machine, by which JAX is to find the other."""
    return {
        "SLURM_JOB_ID": str(port - _SLURMS.start),
        "SLURM_STEP_NODELIST": "localhost",
        **dict.fromkeys(("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"), "2"),
        **dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID"), str(index)),
    }


@contextlib.contextmanager
def both_started(commands, tmp_path, *, by_slurm=False):
    """Two processes that run commands together, and the files of what each says, then of errors."""
    port = free_port(_SLURMS if by_slurm else (0,))
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    worker = ROOT / "tests" / "support" / "one_of_several.py"
    command = [sys.executable, str(worker), "" if by_slurm else str(port), "2"]
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context((tmp_path / f"{n}.txt").open("w+")) for n in range(4)]
        processes = [
            subprocess.Popen(
                [*command, str(index), json.dumps(commands)],
                cwd=ROOT,
                env={**environment, **(slurm_variables(port, index) if by_slurm else {})},
                stdout=outputs[index],
                stderr=outputs[2 + index],
            )
            for index in (0, 1)
        ]
        for process in processes:
            files.callback(process.kill)  # SIGTERM does not end those that wait for each other
        yield processes, outputs


def run_both(commands, tmp_path):
    """The lines that each of two processes says, both of which have to end well."""
    with both_started(commands, tmp_path) as (processes, files):
        for process in processes:
            process.wait(timeout=500)
        texts = [file.seek(0) or file.read() for file in files]
    assert [process.returncode for process in processes] == [0, 0], texts
    lines = (text.splitlines() for text in texts[:2])
    return [[line for line in of_one if "[Gloo]" not in line] for of_one in lines]  # XLA's own


def kill_both(command, records, tmp_path):
    """Kills two processes of SLURM once there is a record of theirs; how many there are then."""
    with both_started([command], tmp_path, by_slurm=True) as (processes, files):
        end = time.monotonic() + 500
        while not (records.exists() and records.read_bytes().count(b"\n")):
            assert time.monotonic() < end
            assert [process.poll() for process in processes] == [None] * 2, files[2].read()
            time.sleep(0.01)
        for process in processes:
            process.kill()
            process.wait()
    return records.read_bytes().count(b"\n")


def save_damaged(model, folder):
    """Writes an Orbax folder with a byte turned in what the second of two processes reads."""
    sinkjax.save_orbax(model, folder)
    last = np.asarray(model.embedding[...])[-1].tobytes()
    contents = {path: path.read_bytes() for path in folder.rglob("d/*")}
    ((path, content),) = ((path, of) for path, of in contents.items() if last in of)
    at = content.index(last)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    return folder


@pytest.fixture
def sources(tmp_path):
    """A model of 32 million parameters, as each kind of what is loaded; quantized as GGUF."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 96}
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    add_llama(writer, hf.make_llama(**sizes, **heads), Type.Q8_0)
    model = sinkjax.load(finish(writer))
    sinkjax.save_safetensors(model, tmp_path / "as_safetensors")
    sinkjax.save_orbax(model, tmp_path / "as_orbax")
    return [tmp_path / name for name in ("model.gguf", "as_safetensors", "as_orbax")]


def assert_its_part_was_read(said, source):
    """Of each tensor half, but of a norm; and the scores of the whole model, by the mask."""
    facts = json.loads(said)
    whole = {name for name, share in facts["read"].items() if share != 0.5}
    assert whole == {name for name in facts["read"] if "norm" in name}
    assert {facts["read"][name] for name in whole} == {1}
    model = sinkjax.load(source)
    scores = sinkjax.measure_sinks(model, tiny_model.tokens_of(model, (3, 12))).score("mean")
    wanted = SinkMask.from_scores(scores, threshold=0.2, path=Sink("first"))
    assert facts["mask"] == str(wanted)
    assert wanted.counts()["sink"]


def assert_its_part_was_kept(said, source):
    """The parameters to the bit, and in a process's memory half of them and what comes with it."""
    facts, model = json.loads(said), sinkjax.load(source)
    assert facts["digest"] == sinkjax.model_digest(model)
    whole = sum(value.nbytes for value in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert 0.4 * whole < facts["risen"] < 0.9 * whole  # by reads of the whole, 1.7 and more


def test_two_processes_write_what_one_does(model, alone, sources, tmp_path):
    """Killed together, they go on to the same records; what they do in parts, they join."""
    both = tmp_path / "both"
    commands = {
        "convert": [f"--output_dir={both / 'orbax'}"],
        **{name: [*of, f"--output_dir={both / name}"] for name, of in STUDIES.items()},
        "timing": [*TIMED, f"--output_dir={both / 'timing'}"],
        "generate": [f"--prompt={PROMPT}", "--max_new_tokens=6"],
    }
    models = dict.fromkeys(("convert", "predict", *KILLED), model)
    meshes = dict.fromkeys(("convert", "repair", "generate"), "model:2")
    runs = [
        [
            f"experiments.{name}",
            *more,
            f"--model={models.get(name, both / 'orbax')}",
            f"--mesh={meshes.get(name, 'data:2')}",
        ]
        for name, more in commands.items()
    ]
    by_name = {command[0].removeprefix("experiments."): command for command in runs}
    parts = [[*by_name["predict"], f"--part={number}/2"] for number in (2, 1)]
    for name in KILLED:
        killed_at = kill_both(by_name[name], both / name / "records.jsonl", tmp_path)
        assert killed_at < len(read_records(alone(name))[1])
    loaded = sinkjax.load(model)
    damaged = save_damaged(loaded, tmp_path / "damaged")
    said_first = [
        ["refused", str(damaged)],
        *(["in_python", str(source), "0.2"] for source in (model, sources[0])),
        *(["loaded", str(source)] for source in sources),
    ]
    stored = ["experiments.convert", f"--model={model}", "--mesh=model:2", "--format=safetensors"]
    stored += [f"--output_dir={both / 'safetensors'}"]
    out, second = run_both([*said_first, *parts, *runs, stored], tmp_path)
    for said, where in ((out, "in process 1 of 2: "), (second, "")):
        bytes_differ, wrong = json.loads(said.pop(0))
        assert bytes_differ.startswith(f"{where}{damaged}: embedding cannot be read (its bytes")
        assert wrong == f"{where}something is wrong"
        for source in (model, sources[0]):
            assert_its_part_was_read(said.pop(0), source)
        for source in sources:
            assert_its_part_was_kept(said.pop(0), source)
    assert second == []
    folders = model, both / "orbax", both / "safetensors"
    assert len({sinkjax.model_digest(sinkjax.load(folder)) for folder in folders}) == 1
    made = [len(read_records(both / "predict" / f"part-{n}-of-2")[1]) for n in (1, 2)]
    assert min(made) > 0
    for name in STUDIES:
        assert f"report: {both / name}/report.html" in "".join(out)
        records, wanted = (read_records(folder)[1] for folder in (both / name, alone(name)))
        assert {record["environment"]["mesh"] for record in records} == {meshes.get(name, "data:2")}
        assert_same_results(records, wanted)
    _, timed = read_records(both / "timing")
    assert [record["stage"] for record in timed] == ["prefill", "decode"]
    for record in timed:
        assert record["mesh"] == "data:2"
        assert len(record["result"]["programs"]) == 2
    folders = both / "search", alone("search")
    (chosen,) = {str(sinkjax.load_mask(folder / "mask.json").mask) for folder in folders}
    assert "w(1,4)" in chosen
    tokenizer = sinkjax.load_tokenizer(model)
    program = sinkjax.compile(loaded, prefill_lengths=(16,), max_length=64)
    tokens = tokenizer(PROMPT)["input_ids"]
    new = program.generate(tokens, max_new_tokens=6)
    assert tokenizer.decode(np.concatenate([tokens, new])) in "\n".join(out)
