"""The records of a run in its output folder, such that it can be killed at any moment.

  run.json           what defines the run: its specification
  records.jsonl      one record a line
  records.sha256     a digest of the specification, then one for each record
  measured/ID.npz    arrays that records are made from
  .lock              held by the process that writes

A record is there from the moment `Results.append` returns, through a kill or a power cut, and is
never there in part: its line is written and synced, then its digest, and what a kill leaves of
the two is cut off by the next process. Every other file is written under a name of its own and
then renamed.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sinkjax.errors import InputError, Problem, about, check_path_name
from sinkjax.files import PARTIAL, parse_json, read_file, replace_file, sync_folder
from sinkjax.studies import chain
from sinkjax.studies.fields import Fields, placed

DIGESTS = "records.sha256"

_MISSING = object()
_MEASURED = "measured"
_NO_RESULTS = "give the output folder of a run that has begun"
_UNCHECKED = (
    "%s: its %d records were written by a version that kept no digests of them, so nobody can tell "
    "whether they are still what was written%s"
)

_logger = logging.getLogger(__name__)


def identity(fields: Mapping[str, Any]) -> str:
    """A name for what the fields say: equal for equal fields in any order.

    Args:
      fields: of JSON values; no NaN.

    Returns:
      the first 16 hex digits of the SHA-256 of their canonical JSON.

    Raises:
      ValueError, TypeError: for what JSON cannot hold.
    """
    return hashlib.sha256(_json(fields, sort_keys=True)).hexdigest()[:16]


def output_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder of a run, which need not be there yet.

    Raises:
      InputError: where it has no name, or one that no folder has.
    """
    path = check_path_name("output_dir", folder, "a folder")
    if "\0" in str(path):
        raise InputError(Problem("output_dir", path, "no path holds a NUL character"))
    return path


def read_records(folder: str | os.PathLike[str]) -> tuple[Fields, list[Fields]]:
    """Reads a run's folder and changes nothing in it, also while the run writes to it.

    Returns:
      the run's specification, and its records in the order in which they were made. A last line
      that is torn, or still being written, is no record.

    Raises:
      InputError: where the folder holds no run's results or cannot be read, or what it holds is
        not what was written.
    """
    folder = check_path_name("folder", folder, "a folder")
    file = folder / "records.jsonl"
    try:
        digests = _kept(folder / DIGESTS)  # before the records, of which more may come
        specification = _specification(folder / "run.json")
        content = read_file(file)
    except (OSError, ValueError) as error:
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else error
        raise InputError(
            f"{folder} holds no results that can be read ({reason}): {_NO_RESULTS}"
        ) from error
    lines = chain.read_lines(content, digests)
    if lines.problems:
        raise InputError(f"{folder}: {_damaged(lines)}", *_each_line(file, lines))
    if lines.digests is None and lines.places:
        _logger.warning(_UNCHECKED, folder, len(lines.places), "")
    if lines.digests is not None and lines.digests[:1] != [chain.first_digest(specification)]:
        raise InputError(
            f"{folder / 'run.json'} is not the one that was written: delete it, and give the same "
            "command again, which writes it anew"
        )
    try:
        return specification, [
            placed(parse_json(content[at : at + size]), f"{file}, line {number}:")
            for number, (at, size) in enumerate(lines.places.values(), start=1)
        ]
    except ValueError as error:
        raise InputError(f"{file}: {error}; {_NO_RESULTS}") from error


def read_study(field: str, folder: str | os.PathLike[str], *studies: str) -> list[Fields]:
    """Reads the records of a folder that a setting names, as `read_records` does.

    Raises:
      InputError: also for a folder of another study than those of these names.
    """
    with about(field):
        specification, records = read_records(folder)
    ran = specification.get("experiment", "sweep")  # version 0.1.0 left it out of a sweep's
    if ran not in studies:
        text = f"it is of `sinkjax {ran}`: give the output folder of `sinkjax {studies[0]}`"
        raise InputError(Problem(field, folder, text))
    return records


class Results:
    """The results in one output folder, opened for writing by this process alone.

    `in`, `len` and iteration (in the order of the file) are over the records.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        specification: Mapping[str, Any],
        beside: Iterable[Path] = (),
    ):
        """Opens the folder, making it where it is missing, and mends what a kill left behind.

        Args:
          folder: for users, `output_dir`.
          specification: all that defines the run's cells, of JSON values.
          beside: folders of the same run, there or not, of which it has the arrays, too.

        Raises:
          InputError: where the folder has no name, cannot be made or written, another process
            writes to it, it holds another run's results, or what it holds is not what was written.
        """
        self.folder = output_folder(folder)
        self._beside = tuple(beside)
        self._records = self.folder / "records.jsonl"
        self._digests = self.folder / DIGESTS
        self._measured = self.folder / _MEASURED
        self._index: dict[str, tuple[int, int]] = {}  # id -> (offset, size) of its line
        self._end = 0  # of the last whole line
        self._digest = b""  # of the last line
        with contextlib.ExitStack() as resources:
            with self._failing("be opened"):
                self._measured.mkdir(parents=True, exist_ok=True)
                self._lock(resources)
                self._remove_partial_files()
                self._records.touch()  # before the specification: where that is, both are
                self._mend(specification)
                self._file = resources.enter_context(open(self._records, "r+b", buffering=0))
                self._proof = resources.enter_context(open(self._digests, "r+b", buffering=0))
                sync_folder(self.folder)
            self._resources = resources.pop_all()

    def close(self) -> None:
        """Lets other processes write to the folder."""
        self._resources.close()

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __contains__(self, record_id: object) -> bool:
        return record_id in self._index

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for record_id in list(self._index):
            yield self._read(record_id)

    def get(self, record_id: str) -> dict[str, Any] | None:
        """The record of this id, or None."""
        return self._read(record_id) if record_id in self._index else None

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record; when this returns, it is on the disk.

        Args:
          record: of JSON values, without NaN, with its "id".

        Raises:
          InputError: where it cannot be written. The folder holds what it held before.
          ValueError, TypeError: for an id that is there already, or what JSON cannot hold.
        """
        record_id = record["id"]
        if record_id in self._index:
            raise ValueError(f"record {record_id} is in {self._records} already")
        line = _json(record) + b"\n"
        with self._failing(f"take {len(line)} bytes more in {self._records.name}"):
            digest = chain.next_digest(self._digest, line)
            proved = (1 + len(self._index)) * (len(digest) + 1)
            try:
                # At known offsets: whatever an earlier failure left after them is written over.
                for file, content, end in (
                    (self._file, line, self._end),
                    (self._proof, digest + b"\n", proved),
                ):
                    _write_all(file.fileno(), content, end)
                    os.fsync(file.fileno())
            except OSError:
                for file, end in ((self._proof, proved), (self._file, self._end)):
                    with contextlib.suppress(OSError):  # what stays is mended on opening
                        file.truncate(end)
                raise
        self._index[record_id] = (self._end, len(line))
        self._end += len(line)
        self._digest = digest

    def put_arrays(self, name: str, /, **arrays: np.ndarray) -> None:
        """Keeps arrays under a name, in place of those that it has; all of them or none.

        Raises:
          InputError: where they cannot be written. The folder holds what it held before.
        """
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        with zipfile.ZipFile(buffer, "a") as file:
            file.comment = arrays_digest(name, arrays)
        # No view of the buffer: Python 3.12.1 crashes where an error's traceback is freed with one.
        self._replace(self._measured / f"{name}.npz", buffer.getvalue())

    def arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays kept under a name; None where there are none, or they have been damaged."""
        for folder in (self.folder, *self._beside):
            if (arrays := read_arrays(folder, name)) is not None:
                return arrays
        return None

    def reserve(self, size: int) -> None:
        """Proves that this many bytes can still be written to the folder, and gives them back.

        Raises:
          InputError: where they cannot.
        """
        path = self.folder / f"reserve{PARTIAL}"
        with self._failing(f"take the {size} bytes that this run may need"):
            try:
                with path.open("wb") as file:
                    _allocate(file.fileno(), size)
            finally:
                path.unlink(missing_ok=True)

    def _lock(self, resources: contextlib.ExitStack) -> None:
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        resources.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._error(
                "another process writes to it. Wait until it ends, or give another."
            ) from error

    def _remove_partial_files(self) -> None:
        for folder in (self.folder, self._measured):
            for path in folder.glob(f"*{PARTIAL}"):
                path.unlink()

    def _mend(self, specification: Mapping[str, Any]) -> None:
        """Checks what is there, finds each record, and cuts off what a kill left."""
        kept, content = _kept(self._digests), read_file(self._records)
        lines = chain.read_lines(content, kept)
        if lines.problems:
            raise self._error(_damaged(lines), *_each_line(self._records, lines))
        specification = self._bind(specification, lines)
        self._index, self._end = lines.places, lines.end
        proved = lines.digests
        if not proved or (proved[0] != chain.first_digest(specification) and not self._index):
            if self._index:
                _logger.warning(_UNCHECKED, self.folder, len(self._index), "; from now on it shows")
            of_records = [content[at : at + size] for at, size in self._index.values()]
            proved = chain.digests_of(specification, of_records)
        self._digest = proved[-1]
        if chain.written(proved) != kept:  # first: what is torn still is, without its digest
            replace_file(self._digests, chain.written(proved))
        if torn := len(content) - self._end:
            with open(self._records, "r+b", buffering=0) as file:
                file.truncate(self._end)
                os.fsync(file.fileno())
            _logger.warning("%s: its last line was torn; cut off %d bytes", self._records, torn)

    def _bind(self, specification: Mapping[str, Any], lines: chain.Lines) -> dict[str, Any]:
        """Makes the folder this run's, or raises InputError where it is another's.

        Returns:
          the specification that its file holds.
        """
        path = self.folder / "run.json"
        wanted = as_json(specification)
        used = self._records.stat().st_size > 0 or any(self._measured.iterdir())
        advice = "Give another folder, or delete this one if its results are not needed."
        was = lines.digests[0] if lines.digests and used else None
        kept, reason = None, None
        if path.exists():
            try:
                kept = _specification(path)
            except ValueError as error:
                reason = error
        whole = kept is not None and was in (None, chain.first_digest(kept))
        if not whole and was == chain.first_digest(wanted):
            _logger.warning("%s was missing or damaged, and is written anew", path)
        elif reason is not None:
            raise self._error(
                f"its {path.name} is no run's specification: it has been damaged, or is another "
                f"program's. {advice}"
            ) from reason
        elif kept is not None and {"experiment": "sweep", **kept} == {
            "experiment": "sweep",
            **wanted,
        }:
            if whole:
                return kept  # version 0.1.0 left the experiment out of a sweep's
            raise self._error(
                f"the first line of its {DIGESTS} is not that of its {path.name}. Delete "
                f"{self._digests}, and give the same command again."
            )
        elif kept is not None and used and not whole:
            raise self._error(
                f"its {path.name} is not the one that was written. Give the command that its "
                "results were made with, which writes it anew; or give another folder."
            )
        elif kept is not None and used:
            ran, runs = (of.get("experiment", "sweep") for of in (kept, wanted))
            if ran != runs:  # and with it all else
                kept, wanted = {"experiment": ran}, {"experiment": runs}
            raise self._error(
                f"it holds the results of another run. {advice}", *differences(kept, wanted)
            )
        elif used:
            raise self._error(
                f"it holds results without a {path.name} that says of what run. {advice}"
            )
        self._replace(path, _json({"specification": wanted}, indent=2) + b"\n")
        return wanted

    def _read(self, record_id: str) -> dict[str, Any]:
        offset, size = self._index[record_id]
        return json.loads(os.pread(self._file.fileno(), size, offset))

    def _replace(self, path: Path, content: bytes) -> None:
        with self._failing(f"take {len(content)} bytes more in {path.relative_to(self.folder)}"):
            replace_file(path, content)

    def _error(self, text: str, *details: str) -> InputError:
        return InputError(Problem("output_dir", self.folder, text), *details)

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Turns what the system refuses into a message for the user."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                advice = "Free space there, or move the folder to a larger disk and name it here"
            else:
                advice = "Make it a folder that can be written, or give another"
            where = f" ({error.filename})" if error.filename else ""
            raise self._error(
                f"it cannot {what}: {error.strerror or error}{where}. {advice}; the same command "
                "then goes on from what is there."
            ) from error


def as_json(specification: Mapping[str, Any]) -> dict[str, Any]:
    """A specification as its file holds it: with lists in place of tuples."""
    return json.loads(_json(specification))


def _json(value: Any, **options: Any) -> bytes:
    separators = None if "indent" in options else (",", ":")
    return json.dumps(value, allow_nan=False, separators=separators, **options).encode()


def _specification(path: Path) -> Fields:
    """What `run.json` says; ValueError where it is not one."""
    content = parse_json(read_file(path))
    specification = content.get("specification") if isinstance(content, dict) else None
    if not isinstance(specification, dict):
        raise ValueError(f"{path.name} has no specification")
    return placed(specification, f"{path}:")


def _kept(path: Path) -> bytes | None:
    """The content of the file of digests; None where there is none."""
    return read_file(path) if path.exists() else None


def _damaged(lines: chain.Lines) -> str:
    """What to do where lines are not those that were written."""
    if lines.digests is None:
        return (
            "its records.jsonl has been damaged or edited. Delete the lines named here, and give "
            "the same command again: it measures their cells anew."
        )
    return (
        f"its records.jsonl and {DIGESTS} do not agree: one has been damaged or edited. Delete the "
        f"lines named here, and {DIGESTS}, and give the same command again: it measures anew what "
        "is missing."
    )


def _each_line(file: Path, lines: chain.Lines) -> Iterator[str]:
    return (f"{file}: {text}" for text in lines.problems)


def read_arrays(folder: Path, name: str) -> dict[str, np.ndarray] | None:
    """The arrays that a run's folder keeps under a name; None for none, or damaged ones."""
    path = folder / _MEASURED / f"{name}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if file.zip.testzip() is not None:
                raise ValueError("a checksum does not match")
            arrays = {key: file[key] for key in file.files}
            if file.zip.comment not in (b"", arrays_digest(name, arrays)):
                raise ValueError("they are not those that were kept there")
            return arrays
    except Exception as error:  # zip, header and array data each raise their own when damaged
        _logger.warning("%s is damaged (%s) and will be measured again", path, error)
        return None


def arrays_digest(name: str, arrays: Mapping[Any, Any]) -> bytes:
    """A digest of arrays and of what they are kept under; files of earlier versions have none."""
    digest = hashlib.sha256(name.encode())
    for key, value in arrays.items():
        array = np.asarray(value)
        digest.update(f" {key} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest().encode()


def differences(kept: Any, wanted: Any, field: str = "") -> Iterator[str]:
    """One line for each field in which two specifications differ."""
    if isinstance(kept, dict) and isinstance(wanted, dict):
        for key in kept | wanted:
            name = f"{field}.{key}" if field else key
            yield from differences(kept.get(key, _MISSING), wanted.get(key, _MISSING), name)
    elif (
        isinstance(kept, list | tuple)
        and isinstance(wanted, list | tuple)
        and len(kept) == len(wanted)
        and any(isinstance(item, dict) for item in kept)
    ):
        for index, of_both in enumerate(zip(kept, wanted, strict=True)):
            yield from differences(*of_both, f"{field}[{index}]")
    elif kept != wanted:
        yield f"{field or 'the run'} is {_text(kept)} there and {_text(wanted)} here"


def _text(value: Any) -> str:
    if value is _MISSING:
        return "missing"
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _write_all(file: int, content: bytes, offset: int) -> None:
    """Writes at an offset; one system call, unless the system stops short."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _allocate(file: int, size: int) -> None:
    """Makes an empty file this large, backed by the disk."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, max(size, 1))
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # of file systems without it
                raise
    block = bytes(1 << 20)
    for offset in range(0, size, len(block)):
        _write_all(file, block[: size - offset], offset)
    os.fsync(file)
