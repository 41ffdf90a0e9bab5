"""Masks, and the folders of studies."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import tiny

import sinkjax
from sinkjax.masks.file import Provenance, load_mask, save_mask
from sinkjax.studies.results import Results, read_records
from tests.fuzz.format import Format


def mask(folder: pathlib.Path) -> Format:
    model = tiny.make(num_layers=2)
    chosen = sinkjax.SinkMask.from_text("L0: 2f 2s(mean) 2w(1,4) | L1: 3s(zero) 3s(mean)")
    save_mask(
        folder / "mask.json",
        chosen,
        provenance=Provenance(
            model="tiny", lengths=(8, 16), threshold=0.9, selection={"by": "share"}
        ),
        quality={"kl": 0.25, "notes": ["é"]},
        fills=tiny.make_fills(model),
    )

    def read(folder: pathlib.Path) -> tuple:
        saved = load_mask(folder / "mask.json")
        fills = None if saved.fills is None else saved.fills.tobytes()
        said = dataclasses.asdict(saved.provenance)
        saved.check(model.config)
        return str(saved.mask), said, saved.quality, fills, saved.digest

    return Format(("mask.json", "mask.json", "mask.fills.safetensors"), read)


@functools.cache
def _sweep() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The specification and the records of a small sweep."""
    from tests.studies import conftest

    model = conftest.describe_model(num_layers=2, num_heads=2, num_kv_heads=1)
    source = conftest.describe_source("short", (2, 8))
    few = dict(models=[model], sources=[source], num_prompts=3, study=False, definitions=("mean",))
    return conftest.build_sweep(**few)


def _write_results(folder: pathlib.Path) -> None:
    specification, records = _sweep()
    with Results(folder, specification) as results:
        for record in records:
            results.append(record)
        results.put_arrays("scores", mean=np.arange(6, dtype=np.float32))


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


_RESULTS = ("records.jsonl", "records.jsonl", "records.sha256", "run.json", "measured/scores.npz")


def _present(folder: pathlib.Path) -> tuple[str, ...]:
    return tuple(name for name in _RESULTS if (folder / name).exists())


def _all_or_untorn(written: bytes) -> Callable[[pathlib.Path, Any], Any]:
    """Expects all records, or all but a last one of whose line or digest only a part is there.

    Args:
      written: the lines of the records, undamaged.
    """

    def expected(folder: pathlib.Path, original: Any) -> Any:
        specification, records, *more = original
        digests = folder / "records.sha256"
        whole = (folder / "records.jsonl").read_bytes().startswith(written)
        if digests.exists():
            whole = whole and digests.read_bytes().count(b"\n") > len(records)
        return original if whole else [specification, records[:-1], *more]

    return expected


def records(folder: pathlib.Path) -> Format:
    _write_results(folder)

    def read(folder: pathlib.Path) -> Any:
        return _plain(read_records(folder))

    return Format(_present(folder), read, _all_or_untorn((folder / _RESULTS[0]).read_bytes()))


def resumed(folder: pathlib.Path) -> Format:
    _write_results(folder)

    def read(folder: pathlib.Path) -> Any:
        with Results(folder, _sweep()[0]) as results:
            arrays = results.arrays("scores")  # None where damaged: they are measured again
            assert arrays is None or arrays["mean"].tolist() == [0, 1, 2, 3, 4, 5]
            return _plain([_sweep()[0], list(results)])

    return Format(_present(folder), read, _all_or_untorn((folder / _RESULTS[0]).read_bytes()))


def report(folder: pathlib.Path) -> Format:
    """Of records without digests, as earlier versions wrote: read or refused, of whatever shape."""
    from runs import report_of

    from sinkjax.report.canvas import Sheet
    from sinkjax.report.page import Picture
    from sinkjax.studies.sweep.study import Sweep

    _write_results(folder)
    (folder / "records.sha256").unlink(missing_ok=True)

    def drawn(sheet: Sheet, name: str, alt: str, caption: str) -> Picture:
        return Picture(name, b"", (1, 1), alt, caption)  # to draw takes seconds, and reads nothing

    def read(folder: pathlib.Path) -> bool:
        with mock.patch.object(Sheet, "picture", drawn):
            return report_of(Sweep, folder).stat().st_size > 10_000

    return Format(("records.jsonl",) * 5 + ("run.json",), read)
