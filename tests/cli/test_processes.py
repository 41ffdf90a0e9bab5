"""Two real processes, each with a device of its own: what one process writes."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import hf
import numpy as np
import pytest
import tiny as tiny_model
from alike import assert_same_results
from scripts import FEW, ROOT, SMALL, run_main

import sinkjax
from sinkjax import Sink, SinkMask
from sinkjax.studies.results import read_records

TIMED = [
    *("--mask=L0-1: 3w(1,4) 3s(zero)", "--batch_sizes=2", "--lengths=8", "--generated=4"),
    *("--rounds=2", "--warmup=1"),
]
PROMPT = "the sea was calm and the old man"
SWEEP = [
    *("--lengths=2,9", "--thresholds=0.3", "--nostudy", "--num_prompts=3"),
    "--definitions=mean,log_odds",
]
MASK = "--mask=L0: 2s(first) 4f | L1: 3w(1,4) 3s(zero)"
QUALITY = ["--lengths=12", "--num_excerpts=3", "--continuation_tokens=4", MASK]
TRAINED = [
    *(*FEW, "--lengths=12"),
    *("--steps=2", "--rows=2", "--save_every=1"),
]
STUDIES = {
    "sweep": SWEEP,
    "quality": QUALITY,
    "gates": [*TRAINED, "--shares=0.5", "--paths=window(1,4)"],
    "repair": [*TRAINED, MASK],
    "retrieval": [
        *("--tasks=fwe", "--lengths=240", "--num_excerpts=2"),
        "--mask=L0: 2s(first) f 2s(first) f | L1: f 2w(1,4) f 2w(1,4)",
    ],
    **SMALL,
    "search": [
        *("--lengths=24", "--kl_budget=2", "--paths=window(1,4)", "--rank_excerpts=2"),
        *("--hold_excerpts=3", "--judge_excerpts=3", "--generated=4", "--control_draws=1"),
        *("--rounds=2", "--tries=2"),
    ],
}


def run_both(commands, tmp_path):
    """The lines that each of two processes says, both of which have to end well."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    worker = ROOT / "tests" / "support" / "one_of_several.py"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(worker), str(port), "2"]
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context((tmp_path / f"{n}.txt").open("w+")) for n in range(4)]
        processes = [
            subprocess.Popen(
                [*command, str(index), json.dumps(commands)],
                cwd=ROOT,
                env=environment,
                stdout=outputs[index],
                stderr=outputs[2 + index],
            )
            for index in (0, 1)
        ]
        for process in processes:
            files.callback(process.kill)  # SIGTERM does not end those that wait for each other
        for process in processes:
            process.wait(timeout=500)
        texts = [file.seek(0) or file.read() for file in outputs]
    assert [process.returncode for process in processes] == [0, 0], texts
    lines = (text.splitlines() for text in texts[:2])
    return [[line for line in of_one if "[Gloo]" not in line] for of_one in lines]  # XLA's own


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
def roomy(small_tokenizer, tmp_path):
    """A random Llama with room for the task of retrieval, of small logits as in test_study_mesh."""
    how = {"max_position_embeddings": 1024, "initializer_range": 0.2}
    return hf.save_small(tmp_path / "model", small_tokenizer, **how)


def test_two_processes_write_what_one_does(roomy, tmp_path):
    """Every command after another in one pair of processes: most of the time is for compiling."""
    model, own, both = f"--model={roomy}", tmp_path / "one", tmp_path / "both"
    commands = {
        "convert": [f"--output={both / 'orbax'}"],
        **{name: [*of, f"--output_dir={both / name}"] for name, of in STUDIES.items()},
        "timing": [*TIMED, f"--output_dir={both / 'timing'}"],
        "generate": [f"--prompt={PROMPT}", "--max_new_tokens=6"],
    }
    models = {"convert": roomy}
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
    alone = sinkjax.load(roomy)
    damaged = save_damaged(alone, tmp_path / "damaged")
    said_first = [["refused", str(damaged)], ["in_python", str(roomy), "0.2"]]
    out, second = run_both([*said_first, *runs], tmp_path)
    for said, where in ((out, "in process 1 of 2: "), (second, "")):
        bytes_differ, wrong = json.loads(said.pop(0))
        assert bytes_differ.startswith(f"{where}{damaged}: embedding cannot be read (its bytes")
        assert wrong == f"{where}something is wrong"
        found = json.loads(said[0])
        assert {name: share for name, share in found["read"].items() if share != 0.5} == {
            name: 1 for name in found["read"] if "norm" in name
        }
        scores = sinkjax.measure_sinks(alone, tiny_model.tokens_of(alone, (3, 12))).score("mean")
        wanted = SinkMask.from_scores(scores, threshold=0.2, path=Sink("first"))
        assert found["mask"] == str(wanted)
        assert wanted.counts()["sink"]
    assert second[1:] == []
    digests = [sinkjax.model_digest(sinkjax.load(folder)) for folder in (roomy, both / "orbax")]
    assert digests[0] == digests[1]
    for name, settings in STUDIES.items():
        assert f"report: {both / name}/report.html" in "".join(out)
        run_main(f"experiments.{name}", *settings, model, f"--output_dir={own / name}")
        (_, ours), (_, theirs) = (read_records(folder / name) for folder in (both, own))
        assert {record["environment"]["mesh"] for record in ours} == {meshes.get(name, "data:2")}
        assert_same_results(ours, theirs)
    _, timed = read_records(both / "timing")
    assert [record["stage"] for record in timed] == ["prefill", "decode"]
    for record in timed:
        assert record["mesh"] == "data:2"
        assert len(record["result"]["programs"]) == 2
    (chosen,) = {str(sinkjax.load_mask(of / "search" / "mask.json").mask) for of in (both, own)}
    assert "w(1,4)" in chosen
    tokenizer = sinkjax.load_tokenizer(roomy)
    program = sinkjax.compile(alone, prefill_lengths=(16,), max_length=64)
    tokens = tokenizer(PROMPT)["input_ids"]
    new = program.generate(tokens, max_new_tokens=6)
    assert tokenizer.decode(np.concatenate([tokens, new])) in "\n".join(out)
