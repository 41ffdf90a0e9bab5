"""Files that are there whole or not at all, through a kill or a power cut; and what may be read."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARTIAL = ".sinkjax-partial"
"""Suffix of a file on its way, which nothing trusts and a later run may delete."""

MOST_BYTES = 1 << 30
"""The most bytes of a file that is read whole."""


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file such that its name holds the old content or the new, never a part.

    Raises:
      OSError: where it cannot be written, or is no file, such as /dev/stdout, in whose place one
        would stand; its name then holds what it held before.
    """
    check_path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def check_path(path: Path) -> None:
    """Refuses a path before a library opens it that would wait for a pipe, or raise its own errors.

    Raises:
      OSError: for a pipe, a socket or a device, which might never end, and a path that has a NUL
        character or half a surrogate pair, as no file's has. Of a missing file it says nothing.
    """
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, "no path holds half a surrogate pair", str(path)) from error
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "no path holds a NUL character", str(path))
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):  # of no name is too long
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))


def user_path(name: str | os.PathLike[str]) -> Path:
    """A path with the home folder for its `~`, where there is such a user."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):
        return Path(name)


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file.

    Args:
      most: bytes that it may have.

    Raises:
      OSError: as `check_file`.
    """
    check_file(path, most)
    return path.read_bytes()


def check_file(path: Path, most: int = MOST_BYTES) -> None:
    """Refuses a file that cannot be read whole.

    Raises:
      OSError: where it cannot be read or has more bytes, and as `check_path`.
    """
    check_path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
    if size > most:
        text = f"it has {size:,} bytes, and at most {most:,} are read"
        raise OSError(errno.EINVAL, text, str(path))


def parse_json(content: str | bytes, *, strict: bool = False) -> Any:
    """The value of a JSON text.

    Args:
      strict: whether keys that are there twice and numbers that are not finite are refused.

    Raises:
      ValueError: where it is none, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        if not strict:
            return json.loads(content)
        value = json.loads(content, object_pairs_hook=_unique)
        json.dumps(value, allow_nan=False)
        return value
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key is there twice")
    return fields


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last through a power cut, as fsync does a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_digest(fields: Mapping[str, Any]) -> str:
    """The sha256 of what a JSON object says, in whatever order and layout it is written."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
