"""Two real processes, each with a device of its own: what one process writes."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import numpy as np
import tiny as tiny_model
from alike import assert_same_results
from scripts import ROOT, run_main

import sinkjax
from sinkjax import Sink, SinkMask
from sinkjax.studies.results import read_records

PROMPT = "the sea was calm and the old man"
SWEEP = [
    *("--lengths=2,9", "--thresholds=0.3", "--nostudy", "--num_prompts=3"),
    "--definitions=mean,log_odds",
]
MASK = "--mask=L0: 2s(first) 4f | L1: 3w(1,4) 3s(zero)"
QUALITY = ["--lengths=12", "--num_excerpts=3", "--continuation_tokens=4", MASK]
TRAINED = [
    *("--choose_excerpts=3", "--judge_excerpts=3", "--lengths=12"),
    *("--steps=2", "--rows=2", "--save_every=1"),
]
STUDIES = {
    "sweep": SWEEP,
    "quality": QUALITY,
    "gates": [*TRAINED, "--shares=0.5", "--paths=window(1,4)"],
    "repair": [*TRAINED, MASK],
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
            process.wait(timeout=500)
        texts = [file.seek(0) or file.read() for file in outputs]
    assert [process.returncode for process in processes] == [0, 0], texts
    lines = (text.splitlines() for text in texts[:2])
    return [[line for line in of_one if "[Gloo]" not in line] for of_one in lines]  # XLA's own


def test_two_processes_write_what_one_does(tiny, tmp_path):
    """Thirty seconds, most of them for starting: several commands, one after another."""
    model, own, both = f"--model={tiny}", tmp_path / "one", tmp_path / "both"
    commands = {
        "convert": [f"--output={both / 'orbax'}"],
        **{name: [*of, f"--output_dir={both / name}"] for name, of in STUDIES.items()},
        "generate": [f"--prompt={PROMPT}", "--max_new_tokens=6"],
    }
    models = {"convert": tiny}
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
    out, second = run_both([["in_python", str(tiny), "0.2"], *runs], tmp_path)
    alone = sinkjax.load(tiny)
    for said in (out, second):
        found = json.loads(said[0])
        assert {name: share for name, share in found["read"].items() if share != 0.5} == {
            name: 1 for name in found["read"] if "norm" in name
        }
        scores = sinkjax.measure_sinks(alone, tiny_model.tokens_of(alone, (3, 12))).score("mean")
        wanted = SinkMask.from_scores(scores, threshold=0.2, path=Sink("first"))
        assert found["mask"] == str(wanted)
        assert wanted.counts()["sink"]
    assert second[1:] == []
    digests = [sinkjax.model_digest(sinkjax.load(folder)) for folder in (tiny, both / "orbax")]
    assert digests[0] == digests[1]
    for name, settings in STUDIES.items():
        assert f"report: {both / name}/report.html" in "".join(out)
        run_main(f"experiments.{name}", *settings, model, f"--output_dir={own / name}")
        (_, ours), (_, theirs) = (read_records(folder / name) for folder in (both, own))
        assert {record["environment"]["mesh"] for record in ours} == {meshes.get(name, "data:2")}
        assert_same_results(ours, theirs)
    tokenizer = sinkjax.load_tokenizer(tiny)
    program = sinkjax.compile(alone, prefill_lengths=(16,), max_length=64)
    tokens = tokenizer(PROMPT)["input_ids"]
    new = program.generate(tokens, max_new_tokens=6)
    assert tokenizer.decode(np.concatenate([tokens, new])) in "\n".join(out)
