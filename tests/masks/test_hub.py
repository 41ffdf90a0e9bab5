"""Masks to and from a Hub of the test's own, each call in a process that has it as its Hub.

All calls are in one process, since huggingface-hub reads where its Hub is on import.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from hub import BRANCH_COMMIT, COMMIT, Hub
from masks import MEANS

import sinkjax

TOKENS = {"ada": "hf_adas", "eve": "hf_eves", "stale": "hf_stale", "broken": "hf_bröken"}

# argv: JSON list of [token, function, argument]; prints a JSON list of results or problems.
CALLS = """
import json, os, sys, traceback
import huggingface_hub
import sinkjax
from sinkjax.cli.mask import MakeMask
functions = {
    "load": lambda name: sinkjax.load_mask(name).digest,
    "push": lambda settings: MakeMask(**settings).run(),
    "readme": lambda repo: huggingface_hub.hf_hub_download(repo, "README.md") and None,
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


def call(calls: dict[str, tuple], home: pathlib.Path, **environment: str) -> tuple[dict, str]:
    """What each call gives in a process whose Hub cache is in `home`, and all that it printed."""
    arguments = [(TOKENS.get(token), *call) for token, *call in calls.values()]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_HOME": str(home),
        "HF_HUB_ETAG_TIMEOUT": "5",
        "HF_HUB_DISABLE_XET": "1",  # large files go by git LFS, which the server speaks
        **environment,
    }
    command = [sys.executable, "-c", CALLS, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(calls, results, strict=True)), done.stdout + done.stderr


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Masks' files: with fills and a measured cost, with neither, and with what no card can say."""
    folder = tmp_path_factory.mktemp("masks")
    mask, fills = MEANS
    quality = {"quality": [{"text": "prose", "length": 8}]}
    sinkjax.save_mask(folder / "means.json", mask, fills=fills, quality=quality)
    plain = sinkjax.SinkMask.from_text("L0-1: 4f 2w(1,4)")
    sinkjax.save_mask(folder / "plain.json", plain)
    hostile = sinkjax.Provenance(model="\ud800\n```\n# Title", text="\x1b[31m`\n", bos="\u202e")
    quality = {"quality": [{"text": "a\n\nb", "length": 8}], "\ud800": "\udfff"}
    sinkjax.save_mask(folder / "hostile.json", plain, provenance=hostile, quality=quality)
    return folder


MISSING = "the repository has no mask.json"
HOSTILE_NAMES = (
    *("", "/", "..", "../..", "../../etc/passwd", "ada/../../etc", "/etc/passwd", "ada/", "/means"),
    *("ada/me\0ans", "ada/me\nans", "ada/\x1b[1m", "ada/\ud800", "ada/@v2", "ada/means?a"),
    *("a" * 500, "ada/%2e%2e", "ada/-", "ada/.git", "ada/a..b", "ada//means", "~/means"),
)
HOSTILE_REVISIONS = "", "..", "../../etc/passwd", "/etc", "v2\n", "v2\0", "v2?a", "@", "\ud800"
HOSTILES = *HOSTILE_NAMES, *(f"ada/tagged@{revision}" for revision in HOSTILE_REVISIONS)


@pytest.fixture(scope="module")
def session(masks, tmp_path_factory):
    """The Hub, what each call gave, and all that was printed."""
    hub = Hub()
    hub.tokens = {TOKENS["ada"]: {"ada"}, TOKENS["eve"]: {"eve"}}
    notes, text = {"README.md": b"# Notes"}, {"mask.json": b"L0: 9f"}
    hub.files["ada/notes"] = {"c" * 40: notes}
    hub.files["ada/text"] = {"c" * 40: text}
    hub.files["ada/both"] = {"c" * 40: notes | text}
    hub.files["ada/tagged"] = {
        COMMIT: {"mask.json": (masks / "plain.json").read_bytes()},
        BRANCH_COMMIT: {
            "mask.json": (masks / "means.json").read_bytes(),
            "mask.fills.safetensors": (masks / "means.fills.safetensors").read_bytes(),
        },
    }
    hub.elsewhere = {"mask.fills.safetensors"}
    hub.moved = {"ada/old": "ada/means", "ada/circle": "ada/circle"}
    for status in (401, 403, 404, 429, 500):
        hub.instead[f"ada/{status}", "revision"] = (status, {}, b"")
        hub.instead[f"ada/list-{status}", "tree"] = (status, {}, b"")
    del hub.instead["ada/list-429", "tree"], hub.instead["ada/list-500", "tree"]  # tried again
    for status in (403, 404):
        hub.files[f"ada/file-{status}"] = hub.files["ada/text"]
        hub.instead[f"ada/file-{status}", "resolve"] = (status, {}, b"")
    hub.files |= {f"ada/list-{status}": hub.files["ada/text"] for status in (401, 403, 404)}
    odd: dict[str, Any] = {"page": b"<html>", "keys": b"{}", "items": b"[3]", "null": b"null"}
    for name, said in odd.items():
        hub.instead[f"ada/{name}", "revision"] = (200, {}, said)
        hub.files[f"ada/list-{name}"] = hub.files["ada/text"]
        hub.instead[f"ada/list-{name}", "tree"] = (200, {}, said)
    hub.files["ada/short"] = hub.files["ada/text"]
    hub.instead["ada/short", "resolve"] = (200, {"X-Repo-Commit": "c" * 40, "ETag": "0"}, b"")
    stages = ("create", "preupload", "lfs", "commit")
    hub.instead |= {(f"ada/no-{stage}", stage): (403, {}, b"") for stage in stages}
    for stage in stages:
        if stage != "lfs":  # whose answer is nothing
            hub.instead[f"ada/odd-{stage}", stage] = (200, {}, b"[]")
    means, plain, hostile = (str(masks / f"{n}.json") for n in ("means", "plain", "hostile"))
    calls: dict[str, tuple] = {
        "push": ("ada", "push", {"mask": means, "push": "ada/means"}),
        "load": (None, "load", "hf://ada/means"),
        "moved": (None, "load", "hf://ada/old"),
        "again": ("ada", "push", {"mask": plain, "push": "ada/means"}),
        "changed": (None, "load", "hf://ada/means"),
        "from the hub": ("ada", "push", {"mask": "hf://ada/means", "push": "ada/copy"}),
        "hostile": ("ada", "push", {"mask": hostile, "push": "ada/hostile"}),
        "hostile load": (None, "load", "hf://ada/hostile"),
        "readme": (None, "readme", "ada/both"),
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
        "main": (None, "load", "hf://ada/tagged"),
        "branch": (None, "load", "hf://ada/tagged@v2"),
        "commit": (None, "load", f"hf://ada/tagged@{COMMIT}"),
        "no branch": (None, "load", "hf://ada/tagged@v3"),
        "push to a branch": ("ada", "push", {"mask": means, "push": "ada/means@v2"}),
    }
    for name in HOSTILES:
        calls[name] = (None, "load", f"hf://{name}")
    for repo, stage in [*hub.instead, ("ada/circle", "revision")]:
        push = ("ada", "push", {"mask": means, "push": repo})
        calls[repo] = push if stage in stages else (None, "load", f"hf://{repo}")
    home = tmp_path_factory.mktemp("home")
    with hub.serve() as address:
        results, printed = call(calls, home, HF_ENDPOINT=address)
    again = ("load", "damaged", "push", "branch", "no branch")
    offline = {f"{name} offline": calls[name] for name in again}
    offline["readme offline"] = (None, "load", "hf://ada/both")
    more, more_printed = call(offline, home, HF_HUB_OFFLINE="1")
    return hub, results | more, printed + more_printed


def test_a_mask_is_pushed_with_its_fills_and_card_and_loaded_again(session, masks):
    hub, results, printed = session
    assert results["load"] == sinkjax.load_mask(masks / "means.json").digest
    first = hub.files["ada/means"][list(hub.files["ada/means"])[1]]
    assert first["mask.json"] == (masks / "means.json").read_bytes()
    assert first["mask.fills.safetensors"] == (masks / "means.fills.safetensors").read_bytes()
    assert b'sinkjax.load_mask("hf://ada/means")' in first["README.md"]
    assert 'load it with sinkjax.load_mask("hf://ada/means")' in printed
    assert f"/ada/means/commit/{list(hub.files['ada/means'])[1]}" in printed


def test_a_repository_that_was_renamed_is_the_one_that_it_is_now(session):
    _, results, _ = session
    assert results["moved"] == results["load"]


def test_a_mask_is_replaced_and_copied(session, masks):
    hub, results, _ = session
    plain = sinkjax.load_mask(masks / "plain.json").digest
    assert results["changed"] == results["load offline"] == plain
    (content,) = (files for files in hub.files["ada/copy"].values() if files)
    assert content["mask.json"] == (masks / "plain.json").read_bytes()


def test_a_revision_is_a_branch_or_a_commit(session, masks):
    _, results, _ = session
    plain, means = (sinkjax.load_mask(masks / f"{name}.json").digest for name in ("plain", "means"))
    assert results["main"] == results["commit"] == plain
    assert results["branch"] == results["branch offline"] == means


def test_a_mask_that_says_whatever_it_may_is_pushed_with_a_card_that_says_it(session, masks):
    hub, results, _ = session
    assert results["hostile load"] == sinkjax.load_mask(masks / "hostile.json").digest
    (files,) = (files for files in hub.files["ada/hostile"].values() if files)
    lines = files["README.md"].decode().split("\n")
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.startswith("# ")] == ["# hostile"]
    assert lines.count("```") * 2 == sum(line.startswith("```") for line in lines)


@pytest.mark.parametrize(
    ("call", "mentions"),
    [
        ("no token", ["push=ada/means: there is no token", "hf auth login", "HF_TOKEN"]),
        ("stale", ["push=ada/means: the Hub does not take the token", "hf auth login"]),
        ("stale load", ["hf://ada/missing: the Hub", "HF_TOKEN"]),
        ("broken", ["push=ada/means: the token that is set holds what no token does"]),
        ("broken load", ["hf://ada/means: the token that is set holds what no token does"]),
        ("not hers", ["push=ada/other: the Hub forbids this to the token that is set"]),
        ("no user", ["push=means: it is no name of a repository: write USER/NAME"]),
        ("no name", ["push=ada/-.-: it is no name of a repository: write USER/NAME"]),
        ("no mask", ["mask: /nowhere.json: the mask cannot be read"]),
        ("missing", ["hf://ada/missing: the Hub has no such repository, or it is private"]),
        ("no name to load", ["hf://ada/means/mask.json: it is no name of a repository"]),
        ("not a mask", [f"hf://ada/notes: {MISSING}", "give one"]),
        ("damaged", ["hf://ada/text: ", "mask.json is no JSON"]),
        ("damaged offline", ["hf://ada/text: ", "mask.json is no JSON"]),
        ("no branch", ["hf://ada/tagged@v3: the repository has no revision v3; give one of its"]),
        ("no branch offline", ["hf://ada/tagged@v3: revision v3 is not, or not wholly, in the"]),
        ("push to a branch", ["push=ada/means@v2: it is no name of a repository: write USER/NAME"]),
        ("readme offline", ["hf://ada/both: ", "in the cache", "HF_HUB_OFFLINE is set; unset it"]),
        ("push offline", ["push=ada/means: the mask cannot be uploaded: HF_HUB_OFFLINE is set"]),
        ("ada/401", ["hf://ada/401: the Hub does not take the token that is set, or asks for one"]),
        ("ada/403", ["hf://ada/403: ", "the Hub forbids this", "hf auth login"]),
        ("ada/429", ["hf://ada/429: ", "no more calls from here for now: wait some minutes"]),
        ("ada/500", ["hf://ada/500: ", "the Hub cannot be reached (", "500"]),
        ("ada/file-403", ["hf://ada/file-403: ", "the Hub forbids this"]),
        ("ada/no-create", ["push=ada/no-create: the Hub forbids this"]),
        ("ada/no-commit", ["push=ada/no-commit: the Hub forbids this"]),
        ("ada/no-lfs", ["push=ada/no-lfs: the mask cannot be uploaded (RuntimeError: Error while"]),
        ("ada/keys", ["hf://ada/keys: its main branch cannot be downloaded ("]),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(session, call, mentions):
    hub, results, _ = session
    (problem,) = results[call]["problems"]
    for mention in mentions:
        assert mention in problem
    assert {"means", "ada/other", "ada/-.-", "ada/no-create"}.isdisjoint(hub.files)


def test_whatever_the_hub_answers_is_said_in_one_line(session):
    hub, results, _ = session
    for repo in [repo for repo, _ in hub.instead] + ["ada/circle"]:
        (problem,) = results[repo]["problems"]
        assert problem.startswith((f"hf://{repo}: ", f"push={repo}: "))
        assert problem.isprintable()


def test_names_that_no_repository_has_reach_no_other_file(session):
    hub, results, _ = session
    for name in HOSTILES:
        (problem,) = results[name]["problems"]
        assert problem.isprintable()
        is_named = name.startswith("ada/tagged@")
        what = "a branch, tag or commit" if is_named else "a repository: write USER/NAME"
        assert f"is no name of {what}" in problem
    asked = {path for _, path in hub.requests}
    assert not any(".." in path or "etc" in path for path in asked)


def test_tokens_are_never_printed(session):
    _, _, printed = session
    assert "Traceback" in printed  # those of what was refused, with their causes
    for token in (*TOKENS.values(), "bröken", "br\\xf6ken"):
        assert token not in printed
