"""Whether a run's records are those that were written: the digests that are kept beside them.

The first digest is of the run's specification; each other one is of the digest before it and of one
record's line. A line that was changed, moved, lost or added has not the digest that is there.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sinkjax.files import parse_json

_MOST = 20  # lines that are named; with more, the next ones are not even compared


class Lines(NamedTuple):
    """What a file of records holds.

    Attributes:
      places: (offset, size) of each record's line by its id, in their order.
      end: of the last whole line, after which only what a kill left follows.
      digests: of the specification and of each line up to there; None where none are kept.
      problems: what is wrong with the lines; what a kill leaves is not.
    """

    places: dict[str, tuple[int, int]]
    end: int
    digests: list[bytes] | None
    problems: list[str]


def first_digest(specification: Mapping[str, Any]) -> bytes:
    """The digest of a specification, with which a folder's digests begin."""
    # Version 0.1.0 left the experiment out of a sweep's.
    named = {"experiment": "sweep", **specification}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest().encode()


def next_digest(digest: bytes, line: bytes) -> bytes:
    """The digest of a line after the one that has this digest."""
    return hashlib.sha256(digest + line).hexdigest().encode()


def digests_of(specification: Mapping[str, Any], lines: Sequence[bytes]) -> list[bytes]:
    """The digests of a specification and of these lines."""
    digests = [first_digest(specification)]
    for line in lines:
        digests.append(next_digest(digests[-1], line))
    return digests


def written(digests: Sequence[bytes]) -> bytes:
    """Digests as their file holds them."""
    return b"".join(digest + b"\n" for digest in digests)


def read_lines(content: bytes, kept: bytes | None) -> Lines:
    """Finds the records in the content of their file, and what does not have its digest.

    Args:
      content: of the file of records.
      kept: the content of the file of digests; None where there is none.
    """
    lines = list(io.BytesIO(content))
    torn = bool(lines) and not lines[-1].endswith(b"\n")
    digests = None if kept is None else kept.split(b"\n")[:-1]
    if torn or (digests is None and lines and _record_id(lines[-1]) is None):
        lines.pop()
    if digests:
        if len(lines) == len(digests):  # killed before the digest of the last was there
            lines.pop()
        elif torn and len(lines) == len(digests) - 2:  # lost in part after it was there
            digests.pop()
    places: dict[str, tuple[int, int]] = {}
    line_of: dict[str, int] = {}
    problems: list[str] = []
    end = 0
    done = 0  # of the digests, those whose lines were found or are missing
    for number, line in enumerate(lines, start=1):
        record_id = _record_id(line)
        place = None if digests is None else _place(line, digests, done)
        if record_id is None:
            problems.append(f"line {number} is not a record")
        elif record_id in line_of:
            problems.append(f"line {number} repeats the id of line {line_of[record_id]}")
        elif digests is not None and place is None:
            problems.append(f"line {number} is not the one that was written")
        else:
            line_of[record_id] = number
            places[record_id] = end, len(line)
        done = place or done
        end += len(line)
        if len(problems) == _MOST and number < len(lines):
            problems.append(f"lines {number + 1} to {len(lines)} were not compared any more")
            break
    if digests is not None and len(lines) < len(digests) - 1:
        problems.append(f"it has {len(lines)} lines of the {len(digests) - 1} that were written")
    return Lines(places, end, digests, problems)


def _place(line: bytes, digests: Sequence[bytes], done: int) -> int | None:
    """Which digest after those that are done is the line's."""
    later = range(done + 1, len(digests))
    return next((k for k in later if next_digest(digests[k - 1], line) == digests[k]), None)


def _record_id(line: bytes) -> str | None:
    """The id of the record in a line; None where the line is not a record."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    record_id = record.get("id") if isinstance(record, dict) else None
    return record_id if isinstance(record_id, str) else None
