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


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file such that its name holds the old content or the new, never a part.

    Raises:
      OSError: where it cannot be written; its name then holds what it held before.
    """
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


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
      OSError: where it cannot be read, or is none: a pipe might never end. Also for a path with a
        NUL character, which no file has.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "no path holds a NUL character", str(path))
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
    return path.read_bytes()


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: where it is none, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


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
