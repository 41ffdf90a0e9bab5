"""Damage of every kind: to bytes, to JSON, to lines, to GGUF's fields, and to files as such.

Each takes a source of chance and a file, and changes the file in place.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np

Mutation = Callable[[random.Random, pathlib.Path], None]

SIZES = (0, 1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 10**9, 2**63 - 1, 2**63, 2**64 - 1)
"""Where counts, lengths and offsets go wrong."""

_RAW = {  # JSON that Python's own writer does not write
    "@deep": b"[" * 100_000 + b"]" * 100_000,
    "@nested": b"[" * 700 + b"]" * 700,  # which Python reads, and cannot copy
    "@digits": b"9" * 5_000,
    "@nan": b"NaN",
    "@huge": b"1e999",
    "@surrogate": b'"\\ud800"',
}
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 64, 0.5, 2.0, 1e-45, 1e300, 10**9, 2**31, 2**63, 10**30),
    *("", "x", "0", "\0", "\x1b[31mred", "../x", "/etc/passwd", "é" * 300, "</s>", "{{"),
    *([], {}, [[]], [None], {"": 0}, list(range(1000)), *_RAW),
)


def flip_bit(chance: random.Random, path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def flip_bit_in_front(chance: random.Random, path: pathlib.Path) -> None:
    """In the first 4 KiB, where large files have their headers."""
    content = bytearray(path.read_bytes())
    if content:
        content[chance.randrange(min(len(content), 4096))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def overwrite_number(chance: random.Random, path: pathlib.Path) -> None:
    """Eight bytes in the first 4 KiB, as a count or a length of some size."""
    content = path.read_bytes()
    at = chance.randrange(min(len(content), 4096) + 1)
    number = chance.choice(SIZES).to_bytes(8, "little")
    path.write_bytes(content[:at] + number + content[at + 8 :])


def move_piece(chance: random.Random, path: pathlib.Path) -> None:
    """Deletes a piece, repeats it, puts random bytes before it, or cuts the file at it."""
    content = path.read_bytes()
    start, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    end = min(end, start + chance.choice((1, 8, 300, 10**6)))
    new = chance.choice(
        (
            content[:start] + content[end:],
            content[:end] + content[start:],
            content[:start] + chance.randbytes(end - start) + content[start:],
            content[:start],
            content[start:end],
            content + content[start:end],
        )
    )
    path.write_bytes(new)


def replace_file(chance: random.Random, path: pathlib.Path) -> None:
    """Takes it away; in its place: nothing, a folder, a pipe, a device, a link, or other bytes."""
    path.unlink()
    chance.choice(
        (
            lambda: None,
            path.mkdir,
            lambda: os.mkfifo(path),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to(path),
            lambda: path.write_bytes(b""),
            lambda: path.write_bytes(b"\xff\xfe\x00" * 50),
            lambda: path.write_bytes(_RAW["@deep"]),
            lambda: _write_zeros(path, 3 << 29),
        )
    )()


def _write_zeros(path: pathlib.Path, size: int) -> None:
    """A file of zeros, of which a disk keeps none."""
    path.touch()
    os.truncate(path, size)


def write_otherwise(chance: random.Random, path: pathlib.Path) -> None:
    """The same text in another encoding, or with other ends of its lines or of their cells."""
    text = path.read_text()
    path.write_bytes(
        chance.choice(
            (
                text.encode("utf-8-sig"),
                text.encode("utf-16"),
                text.encode("latin-1", "replace"),
                text.replace("\n", "\r\n").encode(),
                text.replace("\n", "\r").encode(),
                text.replace("\n", "\u2028").encode(),
                text.replace("\n", "\t\n").encode(),
                text.replace("\t", ",").encode(),
            )
        )
    )


def change_json(chance: random.Random, path: pathlib.Path) -> None:
    """One value or key of a JSON text, wherever it is nested."""
    path.write_bytes(_changed_json(chance, path.read_bytes()))


def change_json_line(chance: random.Random, path: pathlib.Path) -> None:
    """One value or key of one line of JSON."""
    lines = path.read_bytes().splitlines(keepends=True)
    at = chance.randrange(len(lines))
    lines[at] = _changed_json(chance, lines[at]) + b"\n"
    path.write_bytes(b"".join(lines))


def move_line(chance: random.Random, path: pathlib.Path) -> None:
    """Deletes, repeats, tears or empties a line, changes two about, or joins it with the next."""
    lines = path.read_bytes().splitlines(keepends=True)
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    line = lines[at]
    what = chance.randrange(6)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(other, line)
    elif what == 2:
        lines[at] = line[: chance.randrange(len(line))]
    elif what == 3:
        lines[at] = b"\n"
    elif what == 4:
        lines[at], lines[other] = lines[other], line
    else:
        lines[at] = line.rstrip(b"\n")
    path.write_bytes(b"".join(lines))


_STATEMENTS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(10 ** 12) %}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for a in range(50) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ messages * 10 ** 10 }}",
    "{{ raise_exception('\x1b[31mred\n\n') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ missing.content }}",
    "{{ '\\ud800' }}",
    "{% include 'x' %}",
    "{{ messages[0].nothing[0] }}",
    "{{ 1 // 0 }}",
    "{# ",
    "{% endfor %}",
    "{{",
)


def insert_statement(chance: random.Random, path: pathlib.Path) -> None:
    """Of a template: where a line begins, what fails or never ends."""
    lines = path.read_text().splitlines(keepends=True)
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(_STATEMENTS))
    path.write_text("".join(lines))


def change_gguf_field(chance: random.Random, path: pathlib.Path) -> None:
    """One number or string of the header, or a place or shape of a tensor, as `gguf` finds it."""
    reader = gguf.GGUFReader(path, "r+")
    fields = [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]
    part = chance.choice(chance.choice(fields).parts)
    if part.dtype.itemsize == 1 or chance.random() < 0.3:  # text, or a small step
        part.view("u1")[chance.randrange(part.nbytes)] ^= 1 << chance.randrange(8)
    elif chance.random() < 0.3:  # what another tensor says, such as its offset
        other = chance.choice(reader.tensors).field.parts[-1]
        part[...] = other[0].astype(part.dtype)
    else:
        part.view(f"u{part.dtype.itemsize}")[...] = chance.choice(SIZES) % 256**part.dtype.itemsize
    reader.data.flush()


_TYPE = gguf.GGUFValueType
_GGUF_VALUES = (
    *((kind, number) for kind in (_TYPE.FLOAT32, _TYPE.FLOAT64) for number in (-1.0, 1e-38, 1e30)),
    *((_TYPE.FLOAT32, float(number)) for number in ("nan", "inf", "-inf", "0.5", "2")),
    *((_TYPE.INT32, -1), (_TYPE.INT64, -(2**63)), (_TYPE.UINT64, 2**64 - 1), (_TYPE.UINT32, 2**31)),
    *((_TYPE.UINT8, 2), (_TYPE.UINT16, 64), (_TYPE.BOOL, True), (_TYPE.BOOL, False)),
    *((_TYPE.STRING, text) for text in ("", "x", "linear", "yarn", "\0", "\x1b[31m", "é" * 300)),
    *((_TYPE.ARRAY, items) for items in ([1, 1], [2, 2], [1, 2, 3], [0.5], ["x"], [True, True])),
)


def rewrite_gguf(chance: random.Random, path: pathlib.Path) -> None:
    """Writes a file anew with one key or tensor gone, renamed, or another, of whatever type."""
    reader = gguf.GGUFReader(path)
    values = {
        name: [field.types[0], field.contents(), field.types[-1]]
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {of.name: [np.array(of.data), of.tensor_type] for of in reader.tensors}
    changed = values if chance.random() < 0.7 else tensors
    name, what = chance.choice(list(changed)), chance.randrange(5)
    if what == 0:
        del changed[name]
    elif what == 1:
        changed[chance.choice(("x", "", "\0", "\x1b[1m", f"{name} ", "é" * 99))] = changed.pop(name)
    elif what == 2:
        other = chance.choice(list(changed))
        changed[name], changed[other] = changed[other], changed[name]
    elif changed is values:
        kind, value = chance.choice(_GGUF_VALUES)
        values[name] = [kind, value, None]
    else:
        array, kind = tensors[name]
        cut = chance.choice((array[:1], array[..., :1], array[None], array.T, array.reshape(-1)))
        tensors[name] = [np.ascontiguousarray(cut), kind]
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    with contextlib.suppress(ValueError):  # blocks of quantized rows that a cut goes through
        for name, (kind, value, of_items) in values.items():
            writer.add_key_value(name, value, kind, of_items)
        for name, (array, kind) in tensors.items():
            writer.add_tensor(name, array, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    writer.close()


def change_safetensors_header(chance: random.Random, path: pathlib.Path) -> None:
    """One value or key of what a file says of its tensors, with its length as it has to be."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = _changed_json(chance, content[8:end])
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


_CELLS = ("", "x", "nan", "inf", "-1", "1e999", "1_0", "0x1", "１", "\0", " ", "1\t1", "9" * 5000)


def change_cell(chance: random.Random, path: pathlib.Path) -> None:
    """Of a table with tabs: one cell."""
    cells = re.split("([\t\n])", path.read_text())
    cells[chance.randrange(len(cells))] = chance.choice(_CELLS)
    path.write_text("".join(cells))


def _changed_json(chance: random.Random, text: bytes) -> bytes:
    document = json.loads(text)
    containers = list(_containers(document))
    if not containers:
        return json.dumps(chance.choice(_VALUES)).encode()
    # A field as often as an item of the longest list or table.
    container = chance.choice(containers)
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    key = chance.choice(keys)
    value = chance.choice(_VALUES)
    what = chance.randrange(8)
    if what == 0:
        del container[key]
    elif what == 1 and isinstance(container, dict):
        container[chance.choice(("", "x", "\0", "\x1b[1m", f"{key} ", key.upper()))] = (
            container.pop(key)
        )
    elif what == 2:
        other = chance.choice(keys)
        container[key], container[other] = container[other], container[key]
    elif what == 3 and isinstance(container, dict):
        return (
            json.dumps(document)
            .encode()
            .replace(json.dumps(key).encode(), json.dumps(chance.choice(keys)).encode(), 1)
        )  # perhaps a key that is there twice
    elif what == 4 and isinstance(container[key], int | float):
        container[key] += chance.choice((1, -1, 1000, 0.5))
    else:
        container[key] = value
    written = json.dumps(document, indent=chance.choice((None, 2))).encode()
    for name, raw in _RAW.items():
        written = written.replace(json.dumps(name).encode(), raw)
    return written


def _containers(value: Any):
    """All objects and lists of a JSON value that are not empty."""
    if isinstance(value, dict | list) and value:
        yield value
        inner = list(value.values()) if isinstance(value, dict) else value
        for item in inner[:50]:  # of a vocabulary, its beginning
            yield from _containers(item)


_OF_ANY = (flip_bit, flip_bit, move_piece, replace_file)
_BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".json": (change_json,) * 6 + (flip_bit, move_piece, write_otherwise),
    ".jsonl": (change_json_line,) * 3 + (move_line,) * 3 + (write_otherwise,),
    ".txt": (move_line,) * 3 + (write_otherwise,) * 2,
    ".flags": (move_line,) * 3 + (write_otherwise,) * 2,
    ".jinja": (insert_statement,) * 3 + (move_line,) * 2 + (write_otherwise,),
    ".gguf": (change_gguf_field, rewrite_gguf) * 3 + (flip_bit_in_front, overwrite_number),
    ".safetensors": (flip_bit_in_front, change_safetensors_header) * 2 + (overwrite_number,),
    ".tsv": (change_cell,) * 3 + (move_line,) * 2 + (write_otherwise,) * 2,
}


def mutate(chance: random.Random, path: pathlib.Path) -> str:
    """Damages a file in a way that suits it, and says in which."""
    mutation = chance.choice(_OF_ANY + _BY_SUFFIX.get(path.suffix, (overwrite_number,)))
    mutation(chance, path)
    return mutation.__name__


def fresh(base: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes a folder a copy of another, whatever it was."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
