"""Collects what records of several studies say of one mask, for its file."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.errors import InputError, about, first_line
from sinkjax.masks.file import SavedMask
from sinkjax.report.records import Record
from sinkjax.studies.costs import over_texts
from sinkjax.studies.fields import UNLIKE, understood
from sinkjax.studies.quality.promise import over_budget
from sinkjax.studies.quality.summary import measured_quality
from sinkjax.studies.results import read_records
from sinkjax.studies.retrieval.promise import NLL_BUDGET, promises
from sinkjax.studies.store import fills_digest
from sinkjax.studies.timing.measured import BASELINE

_SAME = {
    "quality": ("text_sha256", "length", "bos", "dtype"),
    "retrieval": ("length", "dtype", "asked"),
    "timing": ("stage", "batch_size", "prompt_length", "generated", "dtype", "device", "jax"),
}
"""The fields of which a mask's file keeps one entry for each combination, by what is measured."""

MEASURED = tuple(_SAME)
"""What is measured of a mask, as its file names it."""

_FLOAT32 = "float32"  # of entries that say of none


def collect(saved: SavedMask, folders: Sequence[str]) -> dict[str, Any]:
    """What a mask's file says that it costs, with what runs say beside it.

    Args:
      folders: of runs of quality, retrieval and timing. An entry takes the place of an earlier one
        of the same text and length, questions' length, tasks and depths, or stage and sizes.

    Returns:
      for `sinkjax.save_mask(quality=...)`: of the file's own, and lists "quality"; "retrieval", of
      `promise`; and "timing", of each stage and size the ratio of the mask's time to the baseline's
      and how much of the FLOPs, bytes and cache it takes. Whether a search's mask keeps its budget
      is told anew, of all that was measured in float32 at its length and shorter ones.

    Raises:
      InputError: for a folder that holds no results, or none of this mask, or of another model;
        for a file that has something else in their places.
    """
    for kind in MEASURED:
        own = saved.quality.get(kind, [])
        if not isinstance(own, list) or not all(isinstance(entry, dict) for entry in own):
            text = "save the mask again without it, to have measurements there"
            raise InputError(f"what the mask's file has as {kind} is no list of them; {text}")
    try:
        return _collected(saved, folders)
    except InputError:
        raise
    except UNLIKE as error:
        raise InputError(
            f"the mask's file has not what is read from it ({type(error).__name__}: "
            f"{first_line(error)}): save the mask again without what it says of its quality"
        ) from error


def _collected(saved: SavedMask, folders: Sequence[str]) -> dict[str, Any]:
    """Does what `collect` does, of a file that has what is read from it."""
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in MEASURED}
    for folder in folders:
        with about("measured", folder):
            for kind, entries in _of_run(saved, folder).items():
                by_kind[kind] += entries
    collected = dict(saved.quality)
    for kind, entries in by_kind.items():
        if entries:
            by_place = {
                _place(kind, entry): entry for entry in [*saved.quality.get(kind, ()), *entries]
            }
            collected[kind] = list(by_place.values())
    if by_kind["quality"] and "budget_on" in collected:
        longest = max(saved.provenance.lengths, default=0)
        promised = [
            entry
            for entry in collected["quality"]
            if entry["length"] <= longest and "dtype" not in entry
        ]
        collected.pop("not_generated", None)
        collected |= over_budget(promised, collected["kl_budget"], collected["budget_on"])
        if of_length := [entry for entry in promised if entry["length"] == longest]:
            collected["texts"] = over_texts(of_length, saved.provenance.selection.get("seed", 0))
    return collected


def _place(kind: str, entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an entry is of."""
    fields = {"dtype": _FLOAT32, **entry}
    if "asked" in entry:
        fields["asked"] = tuple((of["task"], of["depth"]) for of in entry["asked"])
    return tuple(fields.get(name) for name in _SAME[kind])


def _of_run(saved: SavedMask, folder: str) -> dict[str, list[dict[str, Any]]]:
    """The entries of one run."""
    records: Sequence[Record] = read_records(folder)[1]
    budget = saved.provenance.selection.get("asked", {}).get("nll_budget", NLL_BUDGET)
    with understood(records):
        own = {
            kind: [r for r in records if r["kind"] == kind and _is_of(saved, r)]
            for kind in MEASURED
        }
        if not any(own.values()):
            raise InputError(
                "it holds nothing of this mask: give folders of sinkjax quality, retrieval or "
                "timing that were run with it"
            )
        for record in itertools.chain(*own.values()):
            _check_model(saved, record["model"])
        return {
            "quality": [
                {**row, **_dtype(record)}
                for record, row in zip(
                    own["quality"], measured_quality(own["quality"]), strict=True
                )
            ],
            "retrieval": [
                {**promised, **_dtype(own["retrieval"][0])}
                for promised in promises(own["retrieval"], budget)
            ],
            "timing": [_time(saved, record) for record in own["timing"]],
        }


def _is_of(saved: SavedMask, record: Record) -> bool:
    candidates = record["candidates"] if record["kind"] == "timing" else [record["candidate"]]
    return any(_is_mask(saved, candidate) for candidate in candidates)


def _is_mask(saved: SavedMask, candidate: Mapping[str, Any]) -> bool:
    wanted = saved.mask.digest, fills_digest(saved.fills)
    return (candidate["mask_digest"], candidate["fills_sha256"]) == wanted


def _check_model(saved: SavedMask, model: Mapping[str, Any]) -> None:
    """Raises InputError for records of another model: one that is as wide may be of its shape."""
    theirs, own = model["model_digest"], saved.provenance.model_digest
    # The digest is of the weights as they were loaded: in another dtype it is another one.
    if own is not None and theirs != own and model["dtype"] == _FLOAT32:
        raise InputError(
            f"its model is {model['name']} with digest {theirs}, the mask's has digest {own}: give "
            "a run with the model that the mask was made for"
        )


def _dtype(record: Record) -> dict[str, str]:
    dtype = record["model"].get("dtype", _FLOAT32)
    return {} if dtype == _FLOAT32 else {"dtype": dtype}


def _time(saved: SavedMask, record: Record) -> dict[str, Any]:
    programs, environment = record["result"]["programs"], record["environment"]
    name = next(of["name"] for of in record["candidates"] if _is_mask(saved, of))
    mask, baseline = programs[name], programs[BASELINE]
    sizes = ("stage", "batch_size", "prompt_length", "generated", "rounds")
    return {
        **{size: record[size] for size in sizes},
        "ratio": dict(mask["ratio"]),
        "flops": mask["limit"]["operations_ratio"],
        "bytes": mask["limit"]["bytes_ratio"],
        "cache": mask["memory"]["cache"] / baseline["memory"]["cache"],
        "baseline_again": dict(record["result"]["baseline_again"]["ratio"]),
        "device": environment["device"],
        "jax": environment["jax"],
        **_dtype(record),
        "model_digest": record["model"]["model_digest"],
        "record": record["id"],
    }
