"""What masks are made of, and are made into: plans, other projects' folders, the Hub's, repairs."""

import contextlib
import hashlib
import json
import pathlib
import re
from typing import Any
from unittest import mock

import huggingface_hub
import jax
import numpy as np
import tiny
from masks import EARLIER, write_scores

import sinkjax
from sinkjax.cli.card import mask_card
from sinkjax.errors import naming
from sinkjax.files import json_digest
from sinkjax.masks.file import Provenance, load_mask, save_mask
from sinkjax.masks.paths import short
from sinkjax.masks.published import read_published
from sinkjax.specialize.build import specialize
from sinkjax.studies.candidates import fills_of, read_plan
from sinkjax.studies.fields import UNLIKE
from sinkjax.studies.gates.gates import GatedModel, start_gates
from sinkjax.studies.repair.repair import Repair, load_repair, save_repair
from sinkjax.studies.store import fills_digest
from sinkjax.studies.training.train import TrainSettings, distil
from tests.fuzz.format import Format
from tests.fuzz.weights import stored_arrays

_MEANS = "L0: 2f 4s(mean) | L1: 6w(1,4)"


def _paths(mask: sinkjax.SinkMask) -> list[list[str]]:
    return [[short(path) for path in layer] for layer in mask.heads]


def _paths_of_text(text: str, length: int | None = None) -> list[list[str]]:
    layers: list[list[str]] = []
    for part in text.split(" | "):
        first, last, runs = re.fullmatch(r"L(\d+)(?:-(\d+))?: (.+)", part).groups()
        assert int(first) == len(layers)
        heads = []
        for run in runs.split(" "):
            count, letter, values = re.fullmatch(r"(\d*)([a-z])[a-z]*(.*)", run).groups()
            if grown := re.fullmatch(r"(.*,)(?:(\d+)\+)?L/(\d+)\)", values):
                values = f"{grown[1]}{int(grown[2] or 0) + length // int(grown[3])})"
            heads += [letter + values] * int(count or 1)
        layers += [heads] * (int(last or first) - int(first) + 1)
    return layers


def plan(folder: pathlib.Path) -> Format:
    model = tiny.make(num_layers=2)
    mask = sinkjax.SinkMask.from_text(_MEANS)
    save_mask(folder / "mask.json", mask, fills=tiny.make_fills(model))
    stages = [
        {"up_to": [8, 16], "mask": "L0: 2f 4w(1,2+L/4) | L1: 5s(first) c(0,3)"},
        {"up_to": 32, "mask": "mask.json"},
        {"up_to": None, "mask": "L0-1: 6full"},
    ]
    (folder / "plan.json").write_text(json.dumps({"crossing": "prefill", "stages": stages}))

    def read(folder: pathlib.Path) -> dict[str, Any]:
        plan, files = read_plan(str(folder / "plan.json"), model.config)
        return {
            "crossing": plan.crossing,
            "stages": [[stage.up_to, _paths(stage.mask)] for stage in plan.stages],
            "fills": [fills_digest(of) for of in fills_of(files).values()],
        }

    def expected(folder: pathlib.Path, original: dict[str, Any]) -> dict[str, Any]:
        said, by_end, before = json.loads((folder / "plan.json").read_bytes()), [], 0
        assert said.keys() == {"crossing", "stages"}
        assert said["crossing"] in ("stay", "prefill")
        for stage in said["stages"]:
            assert stage.keys() == {"up_to", "mask"}
            text, ends = stage["mask"], stage["up_to"]
            for end in ends if isinstance(ends, list) else [ends]:
                assert end is None or (type(end) is int and end > before)
                by_end.append([end, _paths_of_text(_MEANS if text == "mask.json" else text, end)])
                before = end or before
        assert [end is None for end, _ in by_end] == [False] * (len(by_end) - 1) + [True]
        filled = any(stage["mask"] == "mask.json" for stage in said["stages"])
        fills = original["fills"] if filled else []
        return {"crossing": said["crossing"], "stages": by_end, "fills": fills}

    return Format(("plan.json",) * 4 + ("mask.json", "mask.fills.safetensors"), read, expected)


def published(folder: pathlib.Path) -> Format:
    config = sinkjax.LlamaConfig(**{**vars(tiny.make(num_layers=2).config)})
    scores = np.random.default_rng(0).random((2, 2)).round(2)
    write_scores(folder, scores, sinkjax.Window(2, 3))
    (folder / "moa").mkdir()
    spans = {"alphas": [[64.5] * 6, [0] * 6], "betas": [[0.1, 0.5, 1, 0.2, 0, 0.9]] * 2}
    (folder / "moa" / "moa_alpha_beta.json").write_text(json.dumps(spans))

    def read(folder: pathlib.Path) -> list[list[list[str]]]:
        with naming(folder):  # of a mask for another model
            groups = read_published(folder).mask(config, threshold=0.5)
            return [_paths(groups), _paths(read_published(folder / "moa").mask(config, 1000))]

    def expected(folder: pathlib.Path, original: Any) -> list[list[list[str]]]:
        table = (folder / "full_attention_heads.tsv").read_bytes().decode("utf-8-sig")
        lines = [line for line in re.split("\r\n?|\n", table) if line.strip()]
        rows = [[float(cell) for cell in line.split("\t")] for line in lines]
        sizes = json.loads((folder / "config.json").read_bytes())
        window = f"w({sizes['sink_size']:d},{sizes['recent_size']:d})"
        groups = [[p for s in row for p in ["f" if s >= 0.5 else window] * 3] for row in rows]
        assert all(row == row and len(row) == 2 and max(row) < np.inf for row in rows)
        said = json.loads((folder / "moa" / "moa_alpha_beta.json").read_bytes())
        ends = [
            [64 * -(-max(128, int(a + b * 1000)) // 64) for a, b in zip(*of, strict=True)]
            for of in zip(said["alphas"], said["betas"], strict=True)
        ]
        moa = [["f" if end >= 1000 else f"w(64,{end - 64})" for end in of] for of in ends]
        return [groups, moa]

    names = ("full_attention_heads.tsv",) * 2, ("config.json", "moa/moa_alpha_beta.json")
    return Format(sum(names, ()), read, expected)


def hub(folder: pathlib.Path) -> Format:
    """A mask in the Hub's cache, whose writer says of it and of its fills whatever he may."""
    snapshot = pathlib.Path("models--acme--mask", "snapshots", "c" * 40)
    with_means, measured = load_mask(EARLIER / "512-savings.json"), load_mask("smollm2-135m-512")
    save_mask(
        folder / snapshot / "mask.json",
        with_means.mask,
        fills=with_means.fills,
        provenance=measured.provenance,
        quality=measured.quality,
    )
    (folder / "models--acme--mask" / "refs").mkdir()
    (folder / "models--acme--mask" / "refs" / "main").write_text("c" * 40)

    def read(folder: pathlib.Path) -> dict[str, Any]:
        with contextlib.suppress(*UNLIKE, OSError, RecursionError):
            _sign(folder / snapshot)
        with mock.patch.object(huggingface_hub.constants, "HF_HUB_CACHE", str(folder)):
            saved = load_mask("hf://acme/mask")
        lines = mask_card("acme/mask", saved).encode().decode().split("\n")
        assert all(line.isprintable() for line in lines)
        assert lines.count("```") * 2 == sum(line.startswith("```") for line in lines)
        assert [line for line in lines if re.match("#+ ", line)] == _HEADINGS
        return {
            "heads": _paths(saved.mask),
            "fills": None if saved.fills is None else saved.fills.tobytes(),
            "provenance": json.dumps(vars(saved.provenance)),
            "quality": json.dumps(saved.quality),
        }

    def expected(folder: pathlib.Path, original: dict[str, Any]) -> dict[str, Any]:
        said = json.loads((folder / snapshot / "mask.json").read_bytes())
        json.dumps(said, allow_nan=False)
        assert said.keys() == _KEYS
        assert said["schema"] == 1
        heads, known = _paths_of_text(" | ".join(said["heads"])), vars(Provenance())
        assert said["provenance"].keys() <= known.keys()
        assert isinstance(said["quality"], dict)
        filled, fills = np.array([[path == "s(mean)" for path in of] for of in heads]), None
        if filled.any():
            file = (folder / snapshot / "mask.json").with_suffix(".fills.safetensors")
            means = stored_arrays(file.read_bytes())["means"]
            assert means.dtype == np.float32
            assert np.isfinite(means).all()
            fills = np.zeros((*filled.shape, means.shape[1]), np.float32)
            fills[filled] = means
        return {
            "heads": heads,
            "fills": None if fills is None else fills.tobytes(),
            "provenance": json.dumps({**known, **said["provenance"]}),
            "quality": json.dumps(said["quality"]),
        }

    names = ("mask.json",) * 2 + ("mask.fills.safetensors",)
    return Format(tuple(str(snapshot / name) for name in names), read, expected)


_HEADINGS = ["# mask", "## What it costs", "## How it was made"]
_KEYS = {"schema", "digest", "mask_digest", "heads", "provenance", "fills_sha256", "quality"}


def _sign(folder: pathlib.Path) -> None:
    """Makes the digests of a mask those of what its files hold."""
    file, fills = folder / "mask.json", folder / "mask.fills.safetensors"
    said = json.loads(file.read_bytes() if _is_small(file) else b"")
    if _is_small(fills) and said["fills_sha256"] is not None:
        said["fills_sha256"] = hashlib.sha256(fills.read_bytes()).hexdigest()
    said["mask_digest"] = hashlib.sha256(" | ".join(said["heads"]).encode()).hexdigest()
    said.pop("digest", None)
    file.write_text(json.dumps({**said, "digest": json_digest(said)}))


def _is_small(file: pathlib.Path) -> bool:
    return file.is_file() and file.stat().st_size < 10**6


def repair(folder: pathlib.Path) -> Format:
    mask = sinkjax.SinkMask.from_text("L0: 6f | L1: 2f 4w(1,4)")
    its = Repair(specialize(tiny.make(num_layers=2), mask))
    digests = {"mask_digest": mask.digest, "model_digest": "d" * 64}
    save_repair(folder / "mask.json", its.start, **digests)

    def read(folder: pathlib.Path) -> dict[str, bytes]:
        changes = load_repair(folder / "mask.json", **digests)
        its.model(changes)
        return {name: np.asarray(value).tobytes() for name, value in sorted(changes.items())}

    return Format(("mask.repair.safetensors",), read)


def training(folder: pathlib.Path) -> Format:
    """Checkpoints of gates: what is trained from them on is what it was without a stop."""
    model = tiny.make(num_layers=1, vocab_size=11, embed_dim=8, mlp_dim=8)
    gated = GatedModel(model, sinkjax.Window(1, 2))
    excerpts = np.asarray(tiny.tokens_of(model, (2, 4)))
    settings = TrainSettings(steps=2, learning_rate=0.1, save_every=1)

    def read(folder: pathlib.Path) -> list[bytes]:
        start = start_gates(1, 6)
        trained = distil(model, gated.residuals, start, excerpts, settings, folder)
        return [np.asarray(of).tobytes() for of in jax.tree.leaves(tuple(vars(trained).values()))]

    read(folder)
    files = [file for file in sorted((folder / "2").rglob("*")) if file.is_file()]
    return Format(tuple(str(file.relative_to(folder)) for file in files), read)
