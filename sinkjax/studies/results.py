"""The records of a run in its output folder, such that it can be killed at any moment.

  run.json           what defines the run: its specification
  records.jsonl      one record a line
  measured/ID.npz    arrays that records are made from
  .lock              held by the process that writes

A record is there from the moment `Results.append` returns, through a kill or a power cut, and is
never there in part: its line is written and synced before anything counts on it, and a line that
was torn is cut off by the next process. Every other file is written under a name of its own and
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sinkjax.errors import InputError, Problem
from sinkjax.files import PARTIAL, replace_file, sync_folder

_MISSING = object()

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


def read_records(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads a run's folder and changes nothing in it, also while the run writes to it.

    Args:
      folder: the run's output folder.

    Returns:
      the run's specification, and its records in the order in which they were made. A last line
      that is torn, or still being written, is no record.

    Raises:
      InputError: where the folder holds no run's results or cannot be read, or a line of its
        records other than the last is damaged.
    """
    folder = Path(folder)
    specified, records = folder / "run.json", folder / "records.jsonl"
    try:
        specification = _specification(specified)
        content = records.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{folder} holds no results that can be read ({reason}): give the output folder of "
            "a run that has begun"
        ) from error
    index, _, problems = _index(content)
    if problems:
        raise InputError(
            f"{records} has been damaged or edited. Delete the lines named here, and give the "
            "same command again: it measures their cells anew.",
            *(f"{records}: {problem}" for problem in problems),
        )
    return specification, [json.loads(content[at : at + size]) for at, size in index.values()]


class Results:
    """The results in one output folder, opened for writing by this process alone.

    `in`, `len` and iteration (in the order of the file) are over the records.
    """

    def __init__(self, folder: str | os.PathLike[str], specification: Mapping[str, Any]):
        """Opens the folder, making it where it is missing, and mends what a kill left behind.

        Args:
          folder: for users, `output_dir`.
          specification: all that defines the run's cells, of JSON values.

        Raises:
          InputError: where the folder has no name, cannot be made or written, another process
            writes to it, it holds another run's results, or a line of its records other than the
            last is damaged.
        """
        if not os.fspath(folder):
            raise InputError(Problem("output_dir", "", "the folder has no name; give it one"))
        self.folder = Path(folder)
        self._records = self.folder / "records.jsonl"
        self._measured = self.folder / "measured"
        self._index: dict[str, tuple[int, int]] = {}  # id -> (offset, size) of its line
        self._end = 0  # of the last whole line
        with contextlib.ExitStack() as resources:
            with self._failing("be opened"):
                self._measured.mkdir(parents=True, exist_ok=True)
                self._lock(resources)
                self._remove_partial_files()
                self._records.touch()  # before the specification: where that is, both are
                self._bind(specification)
                self._file = resources.enter_context(open(self._records, "r+b", buffering=0))
                sync_folder(self.folder)
                self._load()
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
            try:
                # At a known offset: whatever an earlier failure left after it is written over.
                _write_all(self._file.fileno(), line, self._end)
                os.fsync(self._file.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # what stays is torn, and mended on opening
                    self._file.truncate(self._end)
                raise
        self._index[record_id] = (self._end, len(line))
        self._end += len(line)

    def record(
        self,
        fields: Mapping[str, Any],
        measure: Callable[[], Mapping[str, Any]],
        environment: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Adds the record of what `fields` say, unless it is there.

        Args:
          fields: all that decides the result, of JSON values: the record's id is their identity.
          measure: gives the "result".
          environment: says with what.

        Raises:
          InputError: where it cannot be written. The folder holds what it held before.
        """
        record_id = identity(fields)
        if record_id not in self:
            record = {"id": record_id, **fields, "result": measure()}
            self.append({**record, "environment": environment()})

    def put_arrays(self, name: str, /, **arrays: np.ndarray) -> None:
        """Keeps arrays under a name, in place of those that it has; all of them or none.

        Raises:
          InputError: where they cannot be written. The folder holds what it held before.
        """
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        self._replace(self._measured_path(name), buffer.getbuffer())

    def arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays kept under a name; None where there are none, or they have been damaged."""
        path = self._measured_path(name)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                if file.zip.testzip() is not None:
                    raise ValueError("a checksum does not match")
                return {key: file[key] for key in file.files}
        except Exception as error:  # zip, header and array data each raise their own when damaged
            _logger.warning("%s is damaged (%s) and will be measured again", path, error)
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

    def _bind(self, specification: Mapping[str, Any]) -> None:
        """Makes the folder this run's, or raises InputError where it is another's."""
        path = self.folder / "run.json"
        wanted = json.loads(_json(specification))
        used = self._records.stat().st_size > 0 or any(self._measured.iterdir())
        advice = "Give another folder, or delete this one if its results are not needed."
        if path.exists():
            try:
                kept = _specification(path)
            except ValueError as error:
                raise self._error(
                    f"its {path.name} is no run's specification: it has been damaged, or is "
                    f"another program's. {advice}"
                ) from error
            if {"experiment": "sweep", **kept} == {"experiment": "sweep", **wanted}:
                return  # version 0.1.0 left the experiment out of a sweep's
            if used:
                raise self._error(
                    f"it holds the results of another run. {advice}", *_differences(kept, wanted)
                )
        elif used:
            raise self._error(
                f"it holds results without a {path.name} that says of what run. {advice}"
            )
        self._replace(path, _json({"specification": wanted}, indent=2) + b"\n")

    def _load(self) -> None:
        """Finds where each record lies, and cuts a torn last line off."""
        self._index, self._end, problems = _index(self._records.read_bytes())
        if problems:
            raise self._error(
                f"its {self._records.name} has been damaged or edited. Delete the lines named "
                "here, and their cells are measured again; or give another folder.",
                *(f"{self._records}: {problem}" for problem in problems),
            )
        torn = os.fstat(self._file.fileno()).st_size - self._end
        if torn:
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())
            _logger.warning("%s: its last line was torn; cut off %d bytes", self._records, torn)

    def _read(self, record_id: str) -> dict[str, Any]:
        offset, size = self._index[record_id]
        return json.loads(os.pread(self._file.fileno(), size, offset))

    def _measured_path(self, name: str) -> Path:
        return self._measured / f"{name}.npz"

    def _replace(self, path: Path, content: bytes | memoryview) -> None:
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
            raise self._error(
                f"it cannot {what}: {error.strerror or error}. {advice}; the same command then "
                "goes on from what is there."
            ) from error


def _json(value: Any, **options: Any) -> bytes:
    if "indent" not in options:
        options["separators"] = (",", ":")
    return json.dumps(value, allow_nan=False, **options).encode()


def _specification(path: Path) -> dict[str, Any]:
    """What `run.json` says; ValueError where it is not one."""
    content = json.loads(path.read_bytes())
    specification = content.get("specification") if isinstance(content, dict) else None
    if not isinstance(specification, dict):
        raise ValueError(f"{path.name} has no specification")
    return specification


def _index(content: bytes) -> tuple[dict[str, tuple[int, int]], int, list[str]]:
    """Finds the records in the content of their file.

    Returns:
      (offset, size) of each record's line by its id, in their order; the end of the last whole
      line, after which only a torn one follows; what is wrong with lines other than a torn last.
    """
    places: dict[str, tuple[int, int]] = {}
    line_of: dict[str, int] = {}
    problems: list[str] = []
    end = 0
    for number, line in enumerate(io.BytesIO(content), start=1):
        record_id = _record_id(line)
        if record_id in line_of:
            problems.append(f"line {number} repeats the id of line {line_of[record_id]}")
        elif record_id is not None:
            line_of[record_id] = number
            places[record_id] = (end, len(line))
        elif end + len(line) < len(content):
            problems.append(f"line {number} is not a record")
        else:
            break
        end += len(line)
    return places, end, problems


def _record_id(line: bytes) -> str | None:
    """The id of the record in a line; None where the line is not a whole record."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    record_id = record.get("id") if isinstance(record, dict) else None
    return record_id if isinstance(record_id, str) else None


def _differences(kept: Any, wanted: Any, field: str = "") -> Iterator[str]:
    """One line for each field in which two specifications differ."""
    if isinstance(kept, dict) and isinstance(wanted, dict):
        for key in kept | wanted:
            name = f"{field}.{key}" if field else key
            yield from _differences(kept.get(key, _MISSING), wanted.get(key, _MISSING), name)
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
