"""Reads what users name: prompts, long texts, and the defaults of both."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

from sinkjax import shipped
from sinkjax.errors import InputError, about, each
from sinkjax.files import parse_json, read_file
from sinkjax.studies.prompts import PromptList, TextExcerpts

SHIPPED = {
    "mansfield-park": "Mansfield Park (Jane Austen)",
    "moby-dick": "Moby-Dick (Herman Melville)",
    "five-kinds": "prose, code, dialogue, encyclopaedia, technical",
    "code": "code (Python's standard library)",
    "dialogue": "dialogue (Shakespeare's plays)",
    "encyclopaedia": "encyclopaedia (WikiText-2)",
    "technical": "technical (Flask's documentation)",
}
"""Texts that come with the project, by the name that stands for the file."""

CHOOSE, JUDGE, *_ = SHIPPED
"""The text to choose on, and the one to judge on."""

TEXT = f"Text file, or a shipped text ({', '.join(SHIPPED)})"
"""What `read_text` reads, for who sets it."""


def read_prompts(path: str | Path) -> PromptList:
    """Reads a file of prompts.

    Args:
      path: `.txt`: one prompt a line, as it stands; blank lines and lines that begin with '#' are
        left out. `.jsonl`: on every line a JSON string, or an object with the prompt in "prompt"
        or, failing that, in "text"; blank lines are left out.

    Raises:
      InputError: a file that cannot be read or holds no prompt, or every line that holds none.
    """
    path = Path(path)
    readers = {".txt": _text_lines, ".jsonl": _json_lines}
    with about("prompts", path):
        if path.suffix not in readers:
            raise InputError(
                "its name has to end in .txt (one prompt a line) or .jsonl (JSON lines); rename it"
            )
        text, sha256 = _read(path)
        texts = readers[path.suffix](text)
        if not texts:
            raise InputError("it holds no prompts: give at least one")
    return PromptList(path.name, sha256, tuple(texts))


def read_text(path: str | Path, count: int, seed: int, field: str = "text") -> TextExcerpts:
    """Reads a long text to cut `count` excerpts from, at places that `seed` decides.

    Args:
      path: of the file; or a name in `SHIPPED`.
      field: the setting that names it, for messages.

    Raises:
      InputError: a file that cannot be read or holds no text.
    """
    name = SHIPPED.get(str(path))
    file = Path(path) if name is None else shipped.FOLDER / "texts" / f"{path}.txt"
    with about(field, path):
        text, sha256 = _read(file, f"the path of a file, or a shipped text: {', '.join(SHIPPED)}")
        if not text.strip():
            raise InputError("it is empty: give a file of prose")
    return TextExcerpts(name or file.name, sha256, text, count, seed)


def default_prompts() -> PromptList:
    """The short prompts written for the project, named "short"."""
    return dataclasses.replace(read_prompts(shipped.FOLDER / "prompts.txt"), name="short")


def study_prompts() -> tuple[PromptList, ...]:
    """The founding study's prompts, to be used whole and without BOS, each a list of its own."""
    texts = read_prompts(shipped.FOLDER / "study_prompts.txt").texts
    names = ("study: Hello world", "study: complex sentence (stand-in)")
    return tuple(
        PromptList(name, _sha256(text.encode()), (text,))
        for name, text in zip(names, texts, strict=True)
    )


def _text_lines(text: str) -> list[str]:
    lines = text.split("\n")
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _json_lines(text: str) -> list[str]:
    lines = enumerate(text.split("\n"), start=1)
    return each((line for line in lines if line[1].strip()), _json_prompt)


def _json_prompt(numbered: tuple[int, str]) -> str:
    """The prompt in a numbered line."""
    number, line = numbered
    try:
        value = parse_json(line)
    except ValueError as error:
        raise InputError(f"line {number} is not JSON: {error}") from error
    if isinstance(value, dict):
        value = value.get("prompt", value.get("text"))
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"line {number} holds no prompt: write a JSON string, or an object with one in "
            '"prompt" or "text"'
        )
    if re.search("[\ud800-\udfff]", value):
        raise InputError(
            f"line {number} holds half a surrogate pair, which is no character: write the "
            "character itself, or both halves"
        )
    return value


def _read(path: Path, wanted: str = "the path of a file") -> tuple[str, str]:
    """A file's text, its line ends made one newline, and the sha256 of its bytes."""
    try:
        data = read_file(path)
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}; give {wanted}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"line {line} is not UTF-8 ({error.reason}): save the file as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n"), _sha256(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
