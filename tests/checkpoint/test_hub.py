"""Downloads from a Hub of the test's own: a server on this machine that answers as the Hub does.

huggingface-hub reads its environment on import, so what it does with each environment is done in a
process of its own, all calls of an environment in one.
"""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

import hf
import pytest
import tokenizers
import transformers

import sinkjax
from sinkjax.checkpoint.folder import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS

COMMIT, BRANCH_COMMIT = "c" * 40, "b" * 40
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


class Hub:
    """Repositories by name, each with its files by commit, and the requests that were made."""

    def __init__(self):
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated = {"acme/gated"}
        self.broken = {"acme/broken"}
        self.requests: list[tuple[str, str]] = []

    def downloaded(self, repo: str) -> set[str]:
        """The names of the files whose content was sent."""
        marker = f"/{repo}/resolve/"
        return {
            path.split(marker)[1].split("/", 1)[1]
            for method, path in self.requests
            if method == "GET" and marker in path
        }

    @contextlib.contextmanager
    def serve(self):
        """Runs the server; gives its address."""
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.respond(body=False)

            def do_GET(self):
                self.respond(body=True)

            def respond(self, *, body: bool):
                path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
                hub.requests.append((self.command, path))
                status, headers, content = hub.answer(path)
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/api/models/"):
            owner, name, what, *rest = path.removeprefix("/api/models/").split("/")
        else:
            owner, name, what, *rest = path.removeprefix("/").split("/")
        repo, revision = f"{owner}/{name}", rest[0]
        if repo in self.broken:
            return 500, {}, b""
        if repo not in self.files:
            return self.error(401, "RepoNotFound")
        commit = {"main": COMMIT, "v2": BRANCH_COMMIT}.get(revision, revision)
        if commit not in self.files[repo]:
            return self.error(404, "RevisionNotFound")
        files = self.files[repo][commit]
        if what == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.json({"_id": "1", "id": repo, "sha": commit, "siblings": siblings})
        if what == "tree":
            return self.json(
                [
                    {"type": "file", "path": file, "size": len(data), "oid": self.oid(data)}
                    for file, data in files.items()
                ]
            )
        assert what == "resolve"
        if repo in self.gated:
            return self.error(403, "GatedRepo")
        file = "/".join(rest[1:])
        if file not in files:
            return self.error(404, "EntryNotFound", commit)
        headers = {"ETag": f'"{self.oid(files[file])}"', "X-Repo-Commit": commit}
        return 200, headers, files[file]

    @staticmethod
    def oid(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    @staticmethod
    def json(value) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    @staticmethod
    def error(status: int, code: str, commit: str = COMMIT) -> tuple[int, dict[str, str], bytes]:
        return status, {"X-Error-Code": code, "X-Repo-Commit": commit}, b""


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
        "acme/empty": {COMMIT: {"README.md": b"# Nothing"}},
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
        ("config", "acme/empty", None),
        ("load", "acme/broken", None),
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
        ("config", "acme/empty", None, [CONFIG]),
        ("load", "acme/broken", None, ["cannot be reached (", "500"]),
    ],
)
def test_what_cannot_be_had_is_explained(session, function, repo, revision, mentions):
    _, results = session
    message = problem(results[function, repo, revision])
    assert f"model={repo}" in message or repo == "acme/empty"
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
