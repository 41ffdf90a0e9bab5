"""Masks as files: JSON that a person can read and that knows when it was changed.

  NAME.json               the mask, where it came from, what it was measured to cost
  NAME.fills.safetensors  beside it where heads are `sink(mean)`: their means

The JSON holds a digest of all else in it and the fills' sha256, so that neither can be edited,
swapped or cut short without being refused. Equal contents are equal bytes.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float32

from sinkjax import shipped
from sinkjax.errors import (
    InputError,
    Problem,
    check_array,
    check_items,
    check_kind,
    check_path_name,
    explaining,
    first_line,
    naming,
)
from sinkjax.files import check_path, json_digest, parse_json, read_file, replace_file
from sinkjax.masks.mask import Shape, SinkMask
from sinkjax.masks.paths import Sink

SCHEMA = 1
"""Version of the JSON, raised whenever an older reader would misread it."""

ON_HUB = "mask.json"
"""Name of a mask's file in a repository of the Hub."""

MOST_BYTES = 1 << 24
"""The most bytes of a file that says which heads are masked, of ours and of other projects."""

_MOST_FILLS = 1 << 28  # numbers, of all heads
_SHIPPED = "masks", ".json"
_HUB = "hf://"
_KEYS = ("schema", "digest", "mask_digest", "heads", "provenance", "fills_sha256", "quality")
_TENSOR = "means"  # float32 [heads that are sink(mean), H], by layer, then head
_TEXT: tuple[tuple[type, ...], str] = (str,), "text"
_PROVENANCE: Mapping[str, tuple[tuple[type, ...], str]] = {
    "lengths": ((list,), "list"),
    "threshold": ((int, float), "number"),
    "selection": ((dict,), "object"),
}
"""What the fields of a provenance hold that are no text."""
_SAVE_AGAIN = "if the change was meant, write the mask again with sinkjax.save_mask"


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a mask was made from; None, or nothing, where it does not apply.

    Attributes:
      model, model_digest: its name, and `sinkjax.model_digest`.
      tokenizer_digest: `sinkjax.tokenizer_digest`.
      bos: the policy, of `sinkjax.studies.prompts.BOS_POLICIES`.
      text, text_sha256: the name of the prompts or text, and the sha256 of its bytes.
      lengths: tokens of the prompts, BOS included.
      definition, threshold: of a sink.
      selection: how the heads were chosen from that, of JSON values.
    """

    model: str | None = None
    model_digest: str | None = None
    tokenizer_digest: str | None = None
    bos: str | None = None
    text: str | None = None
    text_sha256: str | None = None
    lengths: tuple[int, ...] = ()
    definition: str | None = None
    threshold: float | None = None
    selection: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_records(
        cls, records: Sequence[Mapping[str, Any]], *, text: str = "source", **selection: Any
    ) -> "Provenance":
        """Returns the provenance of a mask made from records.

        Args:
          records: of one model, text, BOS policy and, where they have such, definition and
            threshold.
          text: the field that describes the text that the heads were chosen on.
          selection: how its heads were chosen; the records' ids are added to it.
        """
        needed = "a list of records is needed, such as read_records gives"
        first, *_ = records = check_items("records", records, needed, 1)
        check_kind("records", first, Mapping, "each a record, such as read_records gives,")
        model, source = first["model"], first[text]
        lengths = {n for r in records for n in r.get("lengths", [r.get("length")])}
        return cls(
            model=model["name"],
            model_digest=model["model_digest"],
            tokenizer_digest=model["tokenizer_digest"],
            bos=first["bos"],
            text=source["name"],
            text_sha256=source["sha256"],
            lengths=tuple(sorted(lengths)),
            definition=first.get("definition"),
            threshold=first.get("threshold"),
            selection={**selection, "records": [record["id"] for record in records]},
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SavedMask:
    """What a mask file holds.

    Attributes:
      mask: the path of every head.
      provenance: what it was made from.
      quality: what it was measured to cost, of JSON values.
      fills: the means of `sink(mean)` heads, 0 for all others; None where no head is one.
      digest: of all the above; two files of one digest say the same.
    """

    mask: SinkMask
    provenance: Provenance
    quality: dict[str, Any]
    fills: Float32[np.ndarray, "L N H"] | None
    digest: str

    def check(self, config: Shape) -> None:
        """Raises InputError where the mask or its fills are for a model of another shape."""
        self.mask.check(config)
        if self.fills is not None and self.fills.shape[2] != config.head_dim:
            raise InputError(
                f"the mask's fills are for heads of size {self.fills.shape[2]}, the model's are of "
                f"size {config.head_dim}: use a mask that was made for this model"
            )


def save_mask(
    path: str | os.PathLike[str],
    mask: SinkMask,
    *,
    provenance: Provenance = Provenance(),
    quality: Mapping[str, Any] | None = None,
    fills: Float32[np.ndarray, "L N H"] | None = None,
) -> str:
    """Writes a mask, in place of what the file holds, and returns the digest of what was written.

    A kill leaves the old files or the new. One between the two files of a mask with fills leaves a
    pair that `load_mask` refuses.

    Args:
      path: ends in ".json". Its folder is made where it is missing.
      mask, provenance: what is written.
      quality: what the mask was measured to cost, of JSON values without NaN.
      fills: needed where there are `sink(mean)` heads; theirs are kept.

    Raises:
      InputError: for a path that does not end in ".json" or cannot be written.
      ValueError: for fills that are missing, of another shape or dtype, or not finite; for NaN,
        what JSON cannot hold, and a provenance that `load_mask` would not read.
    """
    path = check_path_name("path", path, "a file")
    check_kind("mask", mask, SinkMask, "a SinkMask")
    check_kind("provenance", provenance, Provenance, "a Provenance")
    check_kind("quality", quality, Mapping | None, "an object of JSON values, or none,")
    if path.suffix != ".json":
        raise InputError(f"{path} is no name for a mask's file: let it end in .json")
    means = _packed(mask, fills)
    packed = None if means is None else safetensors.numpy.save({_TENSOR: means})
    fields = {
        "schema": SCHEMA,
        "mask_digest": mask.digest,
        "heads": str(mask).split(" | "),
        "provenance": _as_json("provenance", vars(provenance)),
        "fills_sha256": None if packed is None else hashlib.sha256(packed).hexdigest(),
        "quality": _as_json("quality", dict(quality or {})),
    }
    problems: list[Problem | str] = []
    _read_provenance(fields, problems)
    if problems:
        raise InputError(*problems)
    digest = json_digest(fields)
    text = json.dumps({"schema": SCHEMA, "digest": digest, **fields}, indent=2, allow_nan=False)
    fills_path = _fills_path(path)
    advice = "free space there, or give another file"
    with explaining(f"{path}: the mask cannot be written", advice):
        check_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if packed is not None:
            replace_file(fills_path, packed)
        replace_file(path, f"{text}\n".encode())
        if packed is None:
            fills_path.unlink(missing_ok=True)
    return digest


def _as_json(field: str, value: dict[str, Any]) -> dict[str, Any]:
    """An object as it is read back."""
    try:
        return parse_json(json.dumps(value, allow_nan=False), strict=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(Problem(field, None, f"it is not JSON: {first_line(error)}")) from error


def load_mask(path: str | pathlib.Path) -> SavedMask:
    """Reads a mask's file, and its fills where it has some.

    Args:
      path: of the file, or the name of a mask that ships: "smollm2-135m-512"; or
        "hf://USER/NAME", of a repository of the Hub that `sinkjax mask` pushed a mask to;
        "hf://USER/NAME@REVISION" for a branch, tag or commit other than the main branch.

    Raises:
      InputError: listing what is wrong: a file that is missing, no mask, cut short, of another
        schema version or changed since it was written; keys that are unknown or missing; a mask
        that cannot be; fills that are missing, swapped or of another shape; a repository that
        cannot be had.
    """
    check_path_name("path", path, "a mask")
    if str(path).startswith(_HUB):
        with naming(path):
            return _load(_fetch(str(path).removeprefix(_HUB)))
    return _load(shipped.find(path, *_SHIPPED))


def _fetch(name: str) -> pathlib.Path:
    """The file of a repository's mask in the Hub's cache, its fills beside it.

    Args:
      name: USER/NAME or USER/NAME@REVISION.
    """
    import huggingface_hub  # slow to import

    from sinkjax.hub import hub_problems, what_of

    repo_id, at, named = name.partition("@")
    revision = named if at else None
    names = [ON_HUB, _fills_path(pathlib.Path(ON_HUB)).name]
    with hub_problems(
        repo_id,
        f"{what_of(revision)} cannot be downloaded",
        revision=revision,
        missing=f"the repository has no {ON_HUB}: give one that `sinkjax mask` pushed a mask to",
    ):
        # A snapshot, so that the two files are of one commit.
        snapshot = pathlib.Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=names)
        )
        # Where the Hub cannot be asked, others of its files may be all that is there.
        file = huggingface_hub.hf_hub_download(repo_id, ON_HUB, revision=snapshot.name)
    return pathlib.Path(file)


def _load(path: pathlib.Path) -> SavedMask:
    fields = _read_json(path)
    problems: list[Problem | str] = [f"{key!r} is unknown" for key in fields if key not in _KEYS]
    problems += [f"{key!r} is missing" for key in _KEYS if key not in fields]
    content = {key: value for key, value in fields.items() if key != "digest"}
    if "digest" in fields and fields["digest"] != (digest := json_digest(content)):
        problems.append(
            f"it was changed after it was written: its digest is {fields['digest']}, that of what "
            f"it says is {digest}; {_SAVE_AGAIN}"
        )
    mask = _read_mask(fields, problems)
    provenance = _read_provenance(fields, problems)
    if not isinstance(fields.get("quality", {}), dict):
        problems.append("'quality' is no object")
    fills = None
    if mask is not None:
        fills = _read_fills(_fills_path(path), mask, fields.get("fills_sha256"), problems)
    if problems or mask is None:
        raise InputError(*(f"{path}: {problem}" for problem in problems))
    return SavedMask(mask, provenance, fields["quality"], fills, fields["digest"])


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads the JSON object of this version's schema from a file."""
    try:
        content = read_file(path, MOST_BYTES)
    except OSError as error:
        raise InputError(
            f"{path}: the mask cannot be read ({error.strerror}); give a file that "
            "sinkjax.save_mask wrote, or the name of a mask that ships: "
            f"{', '.join(shipped.names(*_SHIPPED))}; SinkMask.from_text reads a mask's text"
        ) from error
    try:
        fields = parse_json(content, strict=True)
    except ValueError as error:
        raise InputError(
            f"{path} is no JSON ({error}): it was cut short or damaged, or is no mask; write it "
            "again with sinkjax.save_mask"
        ) from error
    if not isinstance(fields, dict) or "schema" not in fields:
        raise InputError(f"{path} is no mask: it has no 'schema'; give one by sinkjax.save_mask")
    if fields["schema"] != SCHEMA:
        raise InputError(
            f"{path} has schema {fields['schema']!r}, and this version of sinkjax reads {SCHEMA}: "
            "write the mask again with this version, or read it with the one that wrote it"
        )
    return fields


def _read_mask(fields: Mapping[str, Any], problems: list[Problem | str]) -> SinkMask | None:
    heads = fields.get("heads")
    if not isinstance(heads, list) or not all(isinstance(part, str) for part in heads):
        if "heads" in fields:
            problems.append("'heads' is no list of layers such as \"L0: 9f\"")
        return None
    try:
        mask = SinkMask.from_text(" | ".join(heads))
    except InputError as error:
        problems += error.problems
        return None
    if fields.get("mask_digest", mask.digest) != mask.digest:
        problems.append(f"'mask_digest' is not that of its heads, which is {mask.digest}")
    return mask


def _read_provenance(fields: Mapping[str, Any], problems: list[Problem | str]) -> Provenance:
    made_from = fields.get("provenance", {})
    if not isinstance(made_from, dict):
        problems.append("'provenance' is no object")
        return Provenance()
    known = {field.name: field.default for field in dataclasses.fields(Provenance)}
    problems += [f"'provenance.{key}' is unknown" for key in made_from if key not in known]
    for key, value in made_from.items():
        allowed, kind = _PROVENANCE.get(key, _TEXT)
        if key in known and value is not known[key] and not isinstance(value, allowed):
            problems.append(f"'provenance.{key}' is no {kind}")
    lengths = made_from.get("lengths")
    lengths = lengths if isinstance(lengths, list) else []
    if any(type(length) is not int for length in lengths):
        problems.append("'provenance.lengths' has what is no whole number")
    said = {key: value for key, value in made_from.items() if key in known}
    return Provenance(**{**said, "lengths": tuple(lengths)})


def _read_fills(
    path: pathlib.Path, mask: SinkMask, sha256: str | None, problems: list[Problem | str]
) -> Float32[np.ndarray, "L N H"] | None:
    """Reads the fills from their file; None where the mask has none or they are refused."""
    needed = mask.on(Sink("mean"))
    count = int(needed.sum())
    if (sha256 is not None) != (count > 0):
        has = f"{count} heads are" if count else "no head is"
        problems.append(f"'fills_sha256' is {sha256!r}, though {has} sink(mean)")
        return None
    if sha256 is None:
        return None
    try:
        content = read_file(path)
    except OSError as error:
        problems.append(
            f"its fills cannot be read from {path} ({error.strerror}): keep the two files together"
        )
        return None
    if (its_sha256 := hashlib.sha256(content).hexdigest()) != sha256:
        problems.append(
            f"{path} holds other fills: they were swapped, changed or cut short. Its sha256 is "
            f"{its_sha256}, the mask's own have {sha256}"
        )
        return None
    try:
        means = safetensors.numpy.load(content)[_TENSOR]
        if means.dtype != np.float32 or means.ndim != 2 or len(means) != count:
            raise ValueError(f"means are {means.dtype} {means.shape}")
        if needed.size * means.shape[1] > _MOST_FILLS:
            raise ValueError(f"of all {needed.size:,} heads they would be {means.shape[1]:,} each")
        if not np.isfinite(means).all():
            raise ValueError("not all are finite")
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        problems.append(f"{path} does not hold float32 means of {count} heads ({error})")
        return None
    fills = np.zeros((*needed.shape, means.shape[1]), np.float32)
    fills[needed] = means
    return fills


def _packed(
    mask: SinkMask, fills: Float32[np.ndarray, "L N H"] | None
) -> Float32[np.ndarray, "heads H"] | None:
    """Returns the means of `sink(mean)` heads; None where there are none."""
    needed = mask.on(Sink("mean"))
    if fills is not None:
        fills = check_array("fills", fills)
        if fills.dtype != np.float32 or fills.ndim != 3 or fills.shape[:2] != needed.shape:
            layers, heads = needed.shape
            raise ValueError(
                f"fills are {fills.dtype} {fills.shape}; float32 [{layers}, {heads}, H] is needed"
            )
    if not needed.any():
        return None
    if fills is None:
        raise ValueError(f"{int(needed.sum())} heads are sink(mean): their fills are needed")
    if not np.isfinite(fills[needed]).all():
        raise ValueError("fills are not all finite")
    return fills[needed]


def _fills_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".fills.safetensors")
