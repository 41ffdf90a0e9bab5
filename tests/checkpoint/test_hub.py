"""Downloads from a Hub of the test's own: a server on this machine that answers as the Hub does.

huggingface-hub reads its environment on import, so what it does with each environment is done in a
process of its own, all calls of an environment in one.
"""

import json
import os
import pathlib
import subprocess
import sys

import hf
import pytest
import tokenizers
import transformers
from hub import BRANCH_COMMIT, COMMIT, Hub

import sinkjax
from sinkjax.checkpoint.folder import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS

DISTRACTIONS = {
    "README.md": b"# A model",
    "pytorch_model.bin": b"the same weights",
    "consolidated.safetensors": b"the same weights",
    "model.fp16.safetensors": b"the same weights",
    "original/consolidated.00.pth": b"the same weights",
    "original/tokenizer.model": b"the same tokenizer",
    "original/params.json": b"{}",
    "onnx/model.onnx": b"the same weights",
    "flax_model.msgpack": b"the same weights",
    "training_args.bin": b"no weights",
}
GENERATION = b'{"eos_token_id": [2, 9]}'
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}

# argv: JSON list of [function, repository, revision]; prints a JSON list of results or problems.
CALLS = """
import json, pathlib, sys
import sinkjax
functions = {
    "load": lambda repo, revision: sinkjax.model_digest(sinkjax.load(repo, revision=revision)),
    "config": lambda repo, revision: sinkjax.load_config(repo, revision=revision).num_layers,
    "ends": lambda repo, revision: sinkjax.load_config(repo, revision=revision).eos_token_ids,
    "tokenizer": lambda repo, revision: (
        sinkjax.load_tokenizer(repo, revision=revision)("abba")["input_ids"]
    ),
}
results = []
for function, repo, revision in json.loads(sys.argv[1]):
    try:
        results.append(functions[function](repo, revision))
    except sinkjax.InputError as error:
        results.append({"problems": list(map(str, error.problems))})
print(json.dumps(results))
"""


def call(home: pathlib.Path, calls: list[tuple], **environment: str) -> list:
    """What each call gives in a process whose Hub cache is in `home`."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def read_folder(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models with a tokenizer, in several shards and in one file, as files by name."""
    sharded, single = tmp_path_factory.mktemp("sharded"), tmp_path_factory.mktemp("single")
    bpe = tokenizers.models.BPE({"<s>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(bpe), bos_token="<s>"
    )
    hf.save_llama(sharded)
    hf.make_llama(seed=1, num_hidden_layers=2).save_pretrained(single)
    for folder in (sharded, single):
        tokenizer.save_pretrained(folder)
    return {"sharded": sharded, "single": single}


@pytest.fixture(scope="module")
def hub(models):
    hub = Hub()
    sharded, single = (read_folder(models[kind]) for kind in ("sharded", "single"))
    assert INDEX in sharded
    assert WEIGHTS in single
    described = {file: single[file] for file in (CONFIG, *TOKENIZER)}
    hub.files = {
        "acme/sharded": {COMMIT: sharded | DISTRACTIONS, BRANCH_COMMIT: single | DISTRACTIONS},
        "acme/single": {COMMIT: single | DISTRACTIONS},
        "acme/described": {COMMIT: single | DISTRACTIONS | {GENERATION_CONFIG: GENERATION}},
        "acme/pytorch": {COMMIT: described | {"pytorch_model.bin": b"weights"}},
        "acme/lost": {COMMIT: {file: data for file, data in sharded.items() if "-of-" not in file}},
        "acme/gated": {COMMIT: sharded},
        "acme/gguf": {COMMIT: {"README.md": b"# A model", "model-q4_k_m.gguf": b"GGUF"}},
    }
    return hub


@pytest.fixture(scope="module")
def session(hub, tmp_path_factory):
    """Every call with a Hub that answers, and the cache that they left."""
    calls = [
        ("load", "acme/sharded", None),
        ("load", "acme/sharded", "v2"),
        ("load", "acme/sharded", BRANCH_COMMIT),
        ("load", "acme/single", "main"),
        ("config", "acme/described", None),
        ("ends", "acme/described", None),
        ("tokenizer", "acme/described", None),
        ("load", "acme/pytorch", None),
        ("load", "acme/lost", None),
        ("load", "acme/gated", None),
        ("load", "acme/missing", None),
        ("load", "acme/single", "v3"),
        ("config", "acme/gguf", None),
        ("tokenizer", "acme/gguf", None),
        ("load", "acme/broken", None),
        ("config", "acme/single", "../../etc/passwd"),
        ("config", "acme/single", ""),
    ]
    home = tmp_path_factory.mktemp("home")
    with hub.serve() as address:
        results = call(home, calls, HF_ENDPOINT=address, HF_HUB_ETAG_TIMEOUT="5")
    return home, dict(zip(calls, results, strict=True))


def problem(result) -> str:
    (only,) = result["problems"]
    return only


def test_models_are_loaded_by_branch_and_commit(session, models):
    _, results = session
    sharded, single = (
        sinkjax.model_digest(sinkjax.load(models[kind])) for kind in ("sharded", "single")
    )
    assert results["load", "acme/sharded", None] == sharded
    assert results["load", "acme/sharded", "v2"] == single
    assert results["load", "acme/sharded", BRANCH_COMMIT] == single
    assert results["load", "acme/single", "main"] == single


def test_only_what_is_needed_is_downloaded(session, hub):
    shards = {file for file in hub.files["acme/sharded"][COMMIT] if "-of-" in file}
    assert len(shards) > 2
    described = {CONFIG, *TOKENIZER}
    expected = {
        "acme/sharded": described | {INDEX, WEIGHTS} | shards,
        "acme/single": described | {WEIGHTS},
        "acme/described": described,
        "acme/pytorch": described,
    }
    for repo, files in expected.items():
        optional = {GENERATION_CONFIG} & hub.files[repo][COMMIT].keys()
        assert hub.downloaded(repo) == files | optional
    assert GENERATION_CONFIG in hub.downloaded("acme/described")


def test_config_and_tokenizer_come_without_the_weights(session):
    _, results = session
    assert results["config", "acme/described", None] == 2
    assert results["ends", "acme/described", None] == [2, 9]
    assert results["tokenizer", "acme/described", None] == [3, 2, 1]


@pytest.mark.parametrize(
    ("function", "repo", "revision", "mentions"),
    [
        ("load", "acme/pytorch", None, ["neither model.safetensors nor", "only safetensors"]),
        ("load", "acme/lost", None, ["not all the files that the index names"]),
        ("load", "acme/gated", None, ["accept its licence on", "hf auth login", "HF_TOKEN"]),
        ("load", "acme/missing", None, ["no such repository, or it is private", "spelling"]),
        ("load", "acme/single", "v3", ["no revision v3", "branches, tags"]),
        ("config", "acme/gguf", None, ["has no config.json, ", "(hf download acme/gguf FILE)"]),
        ("tokenizer", "acme/gguf", None, ["has no config.json, ", "(hf download acme/gguf FILE)"]),
        ("config", "acme/single", "../../etc/passwd", ["'../../etc/passwd' is no name of a bran"]),
        ("config", "acme/single", "", ["'' is no name of a branch, tag or commit"]),
        ("load", "acme/broken", None, ["cannot be reached (", "500"]),
    ],
)
def test_what_cannot_be_had_is_explained(session, function, repo, revision, mentions):
    _, results = session
    message = problem(results[function, repo, revision])
    assert f"model={repo}" in message
    for mention in mentions:
        assert mention in message


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it"),
        # A port of this machine at which nobody listens.
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached ([Errno"),
    ],
)
def test_what_is_in_the_cache_needs_no_network(session, environment, reason):
    home, results = session
    calls = [("load", "acme/sharded", None), ("tokenizer", "acme/single", None)]
    calls.append(("load", "acme/elsewhere", None))
    if "HF_HUB_OFFLINE" in environment:  # huggingface-hub tries others for half a minute
        calls.append(("load", "acme/described", None))  # of which the weights were not asked for
    sharded, tokens, *refused = call(home, calls, **environment)
    assert sharded == results["load", "acme/sharded", None]
    assert tokens == [3, 2, 1]
    for result in refused:
        for mention in ("in the cache", str(home), reason):
            assert mention in problem(result)
