"""The GGUF container: metadata, a table of tensors, and tensors read one at a time.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3:
magic, version, counts, key/value pairs, tensor infos, padding, tensor data. The header is parsed
here rather than by `gguf.GGUFReader`, which makes NumPy views of every token and every merge
(seconds for a vocabulary of usual size, twice a run) and follows a damaged length as far as memory
goes. Types, block sizes and dequantization are the `gguf` package's.

Nothing here knows what the metadata or the tensors mean: see `gguf.py` and `gguf_tokenizer.py`.
"""

import dataclasses
import functools
import importlib.metadata
import math
import mmap
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from sinkjax.errors import InputError, explaining, naming
from sinkjax.files import check_path

_STORED_DTYPES = {
    gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
    gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
    gguf.GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
# How many elements are dequantized at once: enough to amortize NumPy's calls, little enough to stay
# in the processor's cache and far below the size of a tensor.
_CHUNK = 1 << 18
_ALL = slice(None)
_NUMBER, _COUNT = "split.no", "split.count"  # of a part, from 0, and of all
_GGUF = f"gguf package {importlib.metadata.version('gguf')}"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """The place of one tensor in the file.

    Attributes:
      shape: row-major, as NumPy and Hugging Face have it; the file lists the reverse.
      type: how the elements are stored.
      offset: of the first byte, in bytes from the start of the file.
      num_bytes: that the elements take.
      mapped: the whole file.
    """

    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    offset: int
    num_bytes: int
    mapped: mmap.mmap = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """A GGUF file, or all parts of one, read but for its tensors, which are known to lie inside it.

    Attributes:
      metadata: by key; values are Python scalars, strings and lists of them.
      tensors: by their names in the file.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str, rows: slice | np.ndarray = _ALL, columns: slice = _ALL) -> np.ndarray:
        """Reads a tensor, or a part of it, into memory of its own.

        Args:
          name: of the tensor in the file.
          rows: which of the stored tensor's to return (elements, where there is one axis), and, as
            an array, in which order.
          columns: which of a tensor's with two axes.

        Returns:
          float32, float16 or bfloat16 as stored, or float32 where the tensor was quantized.
        """
        info = self.tensors[name]
        stored = np.frombuffer(info.mapped, np.uint8, info.num_bytes, info.offset)
        try:
            return _part(stored, info, rows, columns)
        finally:
            info.mapped.madvise(mmap.MADV_DONTNEED)  # else its pages fill this process's memory


def open_gguf_file(path: pathlib.Path) -> GGUFFile:
    """Maps a GGUF file and reads its header; no tensor is read.

    Args:
      path: of the file, or of the first part of a split one, whose others lie beside it. They have
        tensors and no metadata of the model.

    Raises:
      InputError: a file cannot be read, is not GGUF, is damaged or truncated, is not the part that
        its name says, or holds tensors of a type that the `gguf` package cannot dequantize. It
        says which, and what to do.
    """
    first = _open_file(path)
    tensors = dict(first.tensors)
    with naming(path):
        others = _other_parts(path, first.metadata)
    for number, other in enumerate(others, start=1):
        part = _open_file(other)
        with naming(other):
            if (part.metadata.get(_NUMBER), part.metadata.get(_COUNT)) != (number, len(others) + 1):
                raise InputError(
                    f"this is not part {number + 1} of {len(others) + 1} of a split file, as its"
                    " name has it. Download it again."
                )
            if again := tensors.keys() & part.tensors.keys():
                raise _damaged(f"tensor {min(again)} is in a part before it, too")
        tensors |= part.tensors
    return GGUFFile(first.metadata, tensors)


def _other_parts(path: pathlib.Path, metadata: Mapping[str, Any]) -> list[pathlib.Path]:
    """The parts of a split file after its first."""
    number, count = metadata.get(_NUMBER, 0), metadata.get(_COUNT, 0)
    if count in (0, 1):
        return []
    if type(count) is not int or not 0 < count < 1 << 16:  # llama.cpp writes 16 bits
        raise _damaged(f"{_COUNT} is {count!r}")
    ending = f"-00001-of-{count:05d}.gguf"
    if number != 0 or not path.name.endswith(ending):
        raise InputError(
            f"this is one of {count} parts of a split file. Give the first, whose name ends in"
            f" {ending}, with the others beside it."
        )
    stem = path.name.removesuffix(ending)
    return [path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(2, count + 1)]


def _open_file(path: pathlib.Path) -> GGUFFile:
    with naming(path):
        with explaining("cannot be read", "give the path of a readable .gguf file"):
            check_path(path)
            if path.stat().st_size == 0:
                raise InputError("the file is empty. Download or convert it again.")
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        metadata, tensors, end = _parse_header(mapped)
        if end > len(mapped):
            raise InputError(
                f"the file is truncated: its tensors end at byte {end:,}, the file at byte"
                f" {len(mapped):,}. Download it again."
            )
        _check_readable(tensors)
    return GGUFFile(metadata, tensors)


def under(prefix: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata whose keys begin with a prefix, by the rest of the key."""
    return {
        key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)
    }


def _check_readable(tensors: Mapping[str, TensorInfo]) -> None:
    names_by_type: dict[gguf.GGMLQuantizationType, list[str]] = {}
    for name, info in tensors.items():
        if not _is_readable(info.type):
            names_by_type.setdefault(info.type, []).append(name)
    if names_by_type:
        raise InputError(
            *(
                f"{len(names)} tensor(s) of type {type_.name}, which the {_GGUF}"
                f" cannot dequantize: {_shortened(names)}. Use a file of another"
                " quantization of the model, such as Q8_0 or F16."
                for type_, names in names_by_type.items()
            )
        )


@functools.cache
def _is_readable(type_: gguf.GGMLQuantizationType) -> bool:
    """Tells whether tensors of the type can be read; asks the package itself, with one block."""
    if type_ in _STORED_DTYPES:
        return True
    _, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), type_)
    except NotImplementedError:
        return False
    return True


def _part(
    stored: np.ndarray, info: TensorInfo, rows: slice | np.ndarray, columns: slice
) -> np.ndarray:
    """The part of a tensor that `GGUFFile.read` gives, of its bytes."""
    dtype = _STORED_DTYPES.get(info.type)
    if dtype is not None:
        values = stored.view(dtype).reshape(info.shape)
        values = values[rows] if len(info.shape) == 1 else values[rows, columns]
        return values.copy() if isinstance(rows, slice) else values
    *leading, length = info.shape
    size, num_bytes = gguf.GGML_QUANT_SIZES[info.type]
    blocks = stored.reshape(*leading, length // size, num_bytes)
    if not leading:
        return _dequantize(blocks, info.type)[rows]
    # A quantized block never crosses a row, so a part is taken while it is still small.
    start, stop, _ = columns.indices(length)
    first, last = start // size, -(-stop // size)
    values = _dequantize(blocks[rows, ..., first:last, :], info.type)
    return values[..., start - first * size : stop - first * size]


def _dequantize(stored: np.ndarray, type_: gguf.GGMLQuantizationType) -> np.ndarray:
    """Dequantizes blocks, uint8 [..., block, byte], to float32 [..., element], by chunks.

    In chunks because `gguf.dequantize` holds its result twice; each chunk as a single row because
    it works on 16 rows at a time, which are too few to be fast.
    """
    *leading, count, block_bytes = stored.shape
    block_size, _ = gguf.GGML_QUANT_SIZES[type_]
    blocks = stored.reshape(math.prod(leading) * count, block_bytes)
    values = np.empty((len(blocks), block_size), np.float32)
    step = max(1, _CHUNK // block_size)
    for start in range(0, len(blocks), step):
        chunk = blocks[start : start + step]
        values[start : start + step] = gguf.dequantize(
            np.ascontiguousarray(chunk).reshape(1, -1), type_
        ).reshape(-1, block_size)
    return values.reshape(*leading, count * block_size)


def _shortened(names: list[str], limit: int = 8) -> str:
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"


# The header.


def _damaged(what: str) -> InputError:
    return InputError(f"the header is damaged: {what}. Download the file again.")


_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_ITEMS = 1 << 22  # of a list, each of which takes tens of bytes here


class _Cursor:
    """Reads little-endian values one after the other and never past the end."""

    def __init__(self, data: memoryview):
        self._data = data
        self.offset = 0

    def take(self, format_: str, what: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + format_)
        self._require(size, what)
        values = struct.unpack_from("<" + format_, self._data, self.offset)
        self.offset += size
        return values

    def text(self, what: str) -> str:
        (length,) = self.take("Q", what)
        self._require(length, what)
        raw = self._data[self.offset : self.offset + length]
        self.offset += length
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(f"{what}, at byte {self.offset - length:,}, is not UTF-8") from error

    def value(self, type_: int, what: str) -> Any:
        """One metadata value of a `GGUFValueType`."""
        if type_ == gguf.GGUFValueType.STRING:
            return self.text(what)
        if type_ == gguf.GGUFValueType.ARRAY:
            item_type, count = self.take("IQ", what)
            if count > _MAX_ITEMS:
                raise _damaged(f"{what} is a list of {count:,} values, more than any model's has")
            if item_type == gguf.GGUFValueType.STRING:
                self._require(8 * count, what)  # each has at least its length: no need to try
                return [self.text(what) for _ in range(count)]
            return self._numbers(item_type, count, what)
        return self._numbers(type_, 1, what)[0]

    def _numbers(self, type_: int, count: int, what: str) -> list[Any]:
        """Reads so many numbers; float32 as the shortest decimals that give them back.

        So that 1e-5 stored in float32 is 1e-5, as it was in the model's config.json, and not
        9.999999747378752e-06.
        """
        if type_ not in gguf.GGUFReader.gguf_scalar_to_np:
            raise _damaged(
                f"{what}, before byte {self.offset:,}, has the value type {type_}, which GGUF does"
                " not define there"
            )
        dtype = np.dtype(gguf.GGUFReader.gguf_scalar_to_np[type_]).newbyteorder("<")
        size = dtype.itemsize * count
        self._require(size, what)
        values = np.frombuffer(self._data[self.offset : self.offset + size], dtype)
        self.offset += size
        is_single = type_ == gguf.GGUFValueType.FLOAT32
        return [float(str(value)) for value in values] if is_single else values.tolist()

    def _require(self, size: int, what: str) -> None:
        if size > len(self._data) - self.offset:
            raise InputError(
                f"the header is truncated or damaged: {what} needs {size:,} bytes from byte"
                f" {self.offset:,} on, the file ends at byte {len(self._data):,}."
                " Download the file again."
            )


def _parse_header(mapped: mmap.mmap) -> tuple[dict[str, Any], dict[str, TensorInfo], int]:
    """Metadata by key, tensors by name, and the byte at which the last tensor ends."""
    data = memoryview(mapped)
    cursor = _Cursor(data)
    (magic,) = cursor.take("I", "the magic number")
    if magic != gguf.GGUF_MAGIC:
        raise InputError(
            f"not a GGUF file: it begins with {bytes(data[:4])!r}, not b'GGUF'. Give a .gguf file,"
            " or a folder with config.json and safetensors."
        )
    (version,) = cursor.take("I", "the version")
    if version not in _VERSIONS:
        byte_order = " (or of the other byte order)" if version & 0xFFFF == 0 else ""
        raise InputError(
            f"GGUF version {version}{byte_order} is not read; versions 2 and 3, little-endian, are."
            " Convert the model again with a current llama.cpp."
        )
    num_tensors, num_values = cursor.take("QQ", "the number of tensors and metadata values")
    metadata: dict[str, Any] = {}
    for index in range(num_values):
        key = cursor.text(f"the name of metadata value {index}")
        if key in metadata:
            raise _damaged(f"{key} is there twice")
        (type_,) = cursor.take("I", f"the type of {key}")
        metadata[key] = cursor.value(type_, key)

    infos = [_parse_tensor_info(cursor, index, mapped) for index in range(num_tensors)]
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise _damaged(f"general.alignment is {alignment!r}, not a power of two")
    start = _padded(cursor.offset, alignment)
    tensors: dict[str, TensorInfo] = {}
    size = end = 0
    for name, info in infos:
        if name in tensors:
            raise _damaged(f"tensor {name} is there twice")
        if info.offset != size:
            raise _damaged(
                f"tensor {name} is said to begin at byte {info.offset:,} of the data, where those"
                f" before it end at byte {size:,}, padded to {alignment}"
            )
        end = start + size + info.num_bytes
        tensors[name] = dataclasses.replace(info, offset=start + size)
        size += _padded(info.num_bytes, alignment)
    return metadata, tensors, end


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _parse_tensor_info(cursor: _Cursor, index: int, mapped: mmap.mmap) -> tuple[str, TensorInfo]:
    """The name of a tensor and its info, whose offset is still relative to the tensor data."""
    name = cursor.text(f"the name of tensor {index}")
    (num_dimensions,) = cursor.take("I", f"tensor {name}")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise _damaged(f"tensor {name} has {num_dimensions} axes, not 1 to {_MAX_DIMENSIONS}")
    shape = cursor.take(f"{num_dimensions}Q", f"the shape of tensor {name}")[::-1]
    type_, offset = cursor.take("IQ", f"the type and place of tensor {name}")
    try:
        quantization = gguf.GGMLQuantizationType(type_)
    except ValueError as error:
        raise InputError(
            f"tensor {name} is of type {type_}, which the {_GGUF} does not"
            " know: the file is damaged, newer than the package, or of a type that llama.cpp gave"
            " up, as Q4_0_4_4. Use a file of another quantization, such as Q4_0, or update the"
            " package (pip install -U gguf)."
        ) from error
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    if shape[-1] % block_size:
        raise _damaged(
            f"tensor {name} has rows of {shape[-1]} elements, which {quantization.name} stores in"
            f" blocks of {block_size}"
        )
    num_bytes = math.prod(shape) // block_size * block_bytes
    return name, TensorInfo(shape, quantization, offset, num_bytes, mapped)
