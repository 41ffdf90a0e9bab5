"""Masks to and from a Hub of the test's own, each call in a process that has it as its Hub.

All calls are in one process, since huggingface-hub reads where its Hub is on import.
"""

import json
import os
import subprocess
import sys

import pytest
from hub import Hub
from masks import MEANS

import sinkjax

TOKENS = {"ada": "hf_adas", "eve": "hf_eves", "stale": "hf_stale", "broken": "hf_bröken"}

# argv: JSON list of [token, function, argument]; prints a JSON list of results or problems.
CALLS = """
import json, os, sys, traceback
import sinkjax
from sinkjax.cli.mask import MakeMask
functions = {
    "load": lambda name: sinkjax.load_mask(name).digest,
    "push": lambda settings: MakeMask(**settings).run(),
}
results = []
for token, function, argument in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        results.append(functions[function](argument))
    except sinkjax.InputError as error:
        traceback.print_exception(error)
        results.append({"problems": list(map(str, error.problems))})
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Two masks' files: with fills and a measured cost, and with neither."""
    folder = tmp_path_factory.mktemp("masks")
    mask, fills = MEANS
    quality = {"quality": [{"text": "prose", "length": 8}]}
    sinkjax.save_mask(folder / "means.json", mask, fills=fills, quality=quality)
    plain = sinkjax.SinkMask.from_text("L0-1: 4f 2w(1,4)")
    sinkjax.save_mask(folder / "plain.json", plain)
    return folder


@pytest.fixture(scope="module")
def session(masks, tmp_path_factory):
    """The Hub, what each call gave, and all that was printed."""
    hub = Hub()
    hub.tokens = {TOKENS["ada"]: {"ada"}, TOKENS["eve"]: {"eve"}}
    hub.files["ada/notes"] = {"c" * 40: {"README.md": b"# Notes"}}
    hub.files["ada/text"] = {"c" * 40: {"mask.json": b"L0: 9f"}}
    means, plain = str(masks / "means.json"), str(masks / "plain.json")
    calls = {
        "push": ("ada", "push", {"mask": means, "push": "ada/means"}),
        "load": (None, "load", "hf://ada/means"),
        "again": ("ada", "push", {"mask": plain, "push": "ada/means"}),
        "changed": (None, "load", "hf://ada/means"),
        "from the hub": ("ada", "push", {"mask": "hf://ada/means", "push": "ada/copy"}),
        "no token": (None, "push", {"mask": means, "push": "ada/means"}),
        "stale": ("stale", "push", {"mask": means, "push": "ada/means"}),
        "stale load": ("stale", "load", "hf://ada/missing"),
        "broken": ("broken", "push", {"mask": means, "push": "ada/means"}),
        "broken load": ("broken", "load", "hf://ada/means"),
        "not hers": ("eve", "push", {"mask": means, "push": "ada/other"}),
        "no user": ("ada", "push", {"mask": means, "push": "means"}),
        "no name": ("ada", "push", {"mask": means, "push": "ada/-.-"}),
        "no mask": (None, "push", {"mask": "/nowhere.json", "push": "ada/means"}),
        "missing": (None, "load", "hf://ada/missing"),
        "no name to load": (None, "load", "hf://ada/means/mask.json"),
        "not a mask": (None, "load", "hf://ada/notes"),
        "damaged": (None, "load", "hf://ada/text"),
    }
    arguments = [(TOKENS.get(token), *call) for token, *call in calls.values()]
    with hub.serve() as address:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_ENDPOINT": address,
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DISABLE_XET": "1",  # large files go by git LFS, which the server speaks
        }
        command = [sys.executable, "-c", CALLS, json.dumps(arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return hub, dict(zip(calls, results, strict=True)), done.stdout + done.stderr


def test_a_mask_is_pushed_with_its_fills_and_card_and_loaded_again(session, masks):
    hub, results, printed = session
    assert results["load"] == sinkjax.load_mask(masks / "means.json").digest
    first = hub.files["ada/means"][list(hub.files["ada/means"])[1]]
    assert first["mask.json"] == (masks / "means.json").read_bytes()
    assert first["mask.fills.safetensors"] == (masks / "means.fills.safetensors").read_bytes()
    assert b'sinkjax.load_mask("hf://ada/means")' in first["README.md"]
    assert 'load it with sinkjax.load_mask("hf://ada/means")' in printed
    assert f"/ada/means/commit/{list(hub.files['ada/means'])[1]}" in printed


def test_a_mask_is_replaced_and_copied(session, masks):
    hub, results, _ = session
    plain = sinkjax.load_mask(masks / "plain.json").digest
    assert results["changed"] == plain
    (content,) = (files for files in hub.files["ada/copy"].values() if files)
    assert content["mask.json"] == (masks / "plain.json").read_bytes()


@pytest.mark.parametrize(
    ("call", "mentions"),
    [
        ("no token", ["push=ada/means: there is no token", "hf auth login", "HF_TOKEN"]),
        ("stale", ["push=ada/means: the Hub does not take the token", "hf auth login"]),
        ("stale load", ["hf://ada/missing: the Hub", "HF_TOKEN"]),
        ("broken", ["push=ada/means: the token that is set holds what no token does"]),
        ("broken load", ["hf://ada/means: the token that is set holds what no token does"]),
        ("not hers", ["push=ada/other: the token that is set may not do this there"]),
        ("no user", ["push=means: it is no name of a repository: write USER/NAME"]),
        ("no name", ["push=ada/-.-: it is no name of a repository: write USER/NAME"]),
        ("no mask", ["mask: /nowhere.json: the mask cannot be read"]),
        ("missing", ["hf://ada/missing: the Hub has no such repository, or it is private"]),
        ("no name to load", ["hf://ada/means/mask.json: it is no name of a repository"]),
        ("not a mask", ["hf://ada/notes: the repository has no mask.json", "give one"]),
        ("damaged", ["hf://ada/text: ", "mask.json is no JSON"]),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(session, call, mentions):
    hub, results, _ = session
    (problem,) = results[call]["problems"]
    assert "\n" not in problem
    for mention in mentions:
        assert mention in problem
    assert set(hub.files) == {"ada/means", "ada/copy", "ada/notes", "ada/text"}


def test_tokens_are_never_printed(session):
    _, _, printed = session
    assert "Traceback" in printed  # those of what was refused, with their causes
    for token in (*TOKENS.values(), "bröken", "br\\xf6ken"):
        assert token not in printed
