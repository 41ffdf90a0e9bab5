"""Makes a mask from a sweep's records: the heads that are sinks leave full attention.

  sinkjax mask --results=results/quickstart
  sinkjax mask --results=results/quickstart --lengths=2,4,8 --paths="w(4,32)"
  sinkjax mask --results=results/quickstart --quantile=0.8 --units=group --seed=1

A head is chosen where it is a sink, by the sweep's definition and threshold, in at least
--min_share of the prompts at every length (a consistent head). With --quantile=q the share 1 - q of
all heads is chosen in its place, by their lowest mean score over the lengths. With
--units=group a key/value group is chosen whole or not at all: only then does a mask free the keys
and values that its heads share.

Chosen heads take --paths: s(first), s(zero) or w(sinks,recent), in words or first letters; or
copy_first_layer, the founding study's idea, in which they use the attention of layer 0's head of
their own index. All others stay full.

Beside the mask, --output, lies its control: as many heads a layer on the same paths, drawn at
random. What the mask is worth is what it does better than that.
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from sinkjax.cli import terminal
from sinkjax.cli.tool import Tool, write_output
from sinkjax.errors import InputError, Problem, about
from sinkjax.masks.choose import random_control
from sinkjax.masks.file import Provenance, save_mask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path, Sink, parse_path
from sinkjax.masks.scores import consistent
from sinkjax.report.masks import mask_map, mask_table
from sinkjax.report.records import Record
from sinkjax.studies.fields import understood
from sinkjax.studies.results import read_records
from sinkjax.studies.settings import at_least, setting
from sinkjax.studies.sweep.records import Curve, arrange

_COPY = "copy_first_layer"
_MIN_SHARE = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeMask(Tool):
    """Chooses heads by a sweep's records, and writes the mask and its control."""

    renamed: ClassVar[Mapping[str, str]] = {"path": "paths", "groups": "units"}

    results: str = setting("results/sweep", "Folder of a sweep's records: its --output_dir.")
    model: str | None = setting(None, "Model of the sweep; by default its first.")
    source: str | None = setting(None, "Prompts or text of the sweep; by default the first.")
    bos: str | None = setting(None, "BOS policy of the sweep; by default its first.")
    definition: str | None = setting(None, "Definition of the sweep; by default its first.")
    threshold: float | None = setting(None, "Threshold of the sweep; by default its first.")
    lengths: tuple[int, ...] = setting((), "Lengths of the sweep; by default all of the source.")
    min_share: float | None = setting(
        None, f"Share of the prompts in which a chosen head is a sink; by default {_MIN_SHARE}."
    )
    quantile: float | None = setting(
        None, "Part of the heads, from 0 to 1, that is left: the rest is chosen by rank."
    )
    units: Literal["head", "group"] = setting(
        "head", "What is chosen: single heads, or whole key/value groups."
    )
    paths: str = setting("s(first)", f"Path of the chosen heads, or {_COPY}.")
    seed: int = setting(0, "Seed of the control.")
    output: str | None = setting(None, "File of the mask; by default mask.json in --results.")

    def run(self) -> None:
        path = _read_path(self.paths)
        if problems := list(self._problems()):
            raise InputError(*problems)
        with about("results"):
            specification, records = read_records(self.results)
        with understood(records):
            self._save(specification, records, path)

    def _save(
        self, specification: Mapping[str, Any], records: Sequence[Record], path: Path | None
    ) -> None:
        """Chooses the mask and its control, shows and writes them."""
        curve = self._curve(specification, records)
        cells = self._cells(curve)
        mask, control = self._choose(cells, path)
        rule = {"by": "quantile", "quantile": self.quantile}
        if self.quantile is None:
            rule = {"by": "consistent", "min_share": self._share}
        made_from = Provenance.from_records(cells, **rule, unit=self.units, path=self.paths)
        drawn = {**made_from.selection, "control_of": mask.digest, "seed": self.seed}
        console = terminal.console()
        console.print(f"{made_from.model}, {made_from.text}, {curve.criterion}", markup=False)
        num_kv_heads = curve.model["num_kv_heads"]
        terminal.print_table(console, mask_table(mask, control, num_kv_heads))
        control_from = dataclasses.replace(made_from, selection=drawn)
        output = self._file()
        for name, file, made, provenance in (
            ("mask", output, mask, made_from),
            ("control", output.with_suffix(".control.json"), control, control_from),
        ):
            save_mask(file, made, provenance=provenance)
            content, image = io.BytesIO(), file.with_suffix(".png")
            mask_map(made, f"{name} of {provenance.model}", num_kv_heads).savefig(content)
            write_output(image, content.getvalue())
            console.print(f"{name}: {file}, heat map: {image}", soft_wrap=True, highlight=False)

    def _problems(self) -> Iterator[Problem | str]:
        """The problems of the settings, whatever the sweep holds."""
        if self.min_share is not None and not 0 < self.min_share <= 1:
            yield Problem("min_share", self.min_share, "give a share above 0, of at most 1")
        if self.quantile is not None and not 0 <= self.quantile <= 1:
            yield Problem("quantile", self.quantile, "give one from 0 to 1, such as 0.9")
        if self.quantile is not None and self.min_share is not None:
            yield "--quantile and --min_share are two ways to choose; give one of them"
        yield from at_least(self, seed=0)
        if self._file().suffix != ".json":
            yield Problem("output", self.output, "let the name end in .json")

    def _curve(self, specification: Mapping[str, Any], records: Sequence[Record]) -> Curve:
        """The part of the sweep that the settings name."""
        cells = [record for record in records if record["kind"] == "cell"]
        sweep = arrange(specification, cells)
        curves = [curve for group in sweep.groups for curve in group.curves]
        if not curves:
            text = (
                "it holds no prompts' or texts' scores (yet): give the --output_dir of sinkjax "
                "sweep"
            )
            raise InputError(Problem("results", self.results, text))
        for name, value_of in (
            ("model", lambda curve: sweep.model_name(curve.model)),
            ("source", lambda curve: curve.source_name),
            ("bos", lambda curve: curve.bos),
            ("definition", lambda curve: curve.definition),
            ("threshold", lambda curve: curve.threshold),
        ):
            known = list(dict.fromkeys(map(value_of, curves)))
            wanted = known[0] if getattr(self, name) is None else getattr(self, name)
            if wanted not in known:
                text = (
                    f"it is not in --results={self.results}, which has "
                    f"{', '.join(map(str, known))}: give one of these, or sweep with it"
                )
                raise InputError(Problem(name, wanted, text))
            curves = [curve for curve in curves if value_of(curve) == wanted]
        return curves[0]

    def _cells(self, curve: Curve) -> list[Record]:
        """The records of the lengths that are named, or of all."""
        lengths = self.lengths or (*curve.lengths, *curve.missing)
        if unknown := sorted(set(lengths) - set(curve.lengths)):
            text = (
                f"{curve.source_name} was not measured there (yet); the sweep has "
                f"{', '.join(map(str, curve.lengths))}"
            )
            raise InputError(Problem("lengths", unknown, text))
        return [cell for cell in curve.cells if cell["length"] in lengths]

    @property
    def _share(self) -> float:
        return _MIN_SHARE if self.min_share is None else self.min_share

    def _choose(self, cells: list[Record], path: Path | None) -> tuple[SinkMask, SinkMask]:
        """The mask and its control."""
        num_kv_heads = cells[0]["model"]["num_kv_heads"] if self.units == "group" else None
        first = path or Sink("first")  # copies are made of what was chosen, below
        if self.quantile is None:
            shares = np.min([cell["result"]["per_head"] for cell in cells], axis=0)
            mask = SinkMask.where(consistent(shares, self._share, num_kv_heads), first)
        else:
            lowest = np.min([cell["result"]["mean_score"] for cell in cells], axis=0)
            mask = SinkMask.from_quantile(
                lowest, quantile=self.quantile, path=first, num_kv_heads=num_kv_heads
            )
        control = random_control(mask, seed=self.seed, num_kv_heads=num_kv_heads)
        if path is None:
            mask, control = (SinkMask.copy_first_layer(m.masked) for m in (mask, control))
        if not mask.masked.any():
            lengths = ", ".join(str(cell["length"]) for cell in cells)
            raise InputError(
                f"no head is chosen at {lengths} tokens: name fewer --lengths, a lower --min_share "
                "or --threshold, or choose a --quantile"
            )
        return mask, control

    def _file(self) -> pathlib.Path:
        return pathlib.Path(self.output or pathlib.Path(self.results, "mask.json"))


def _read_path(text: str) -> Path | None:
    """The path of the chosen heads; None for copies of layer 0."""
    if text == _COPY:
        return None
    with about("paths", text):
        try:
            path = parse_path(text, ("window", "sink"))
        except InputError as error:
            raise InputError(f"{error}; or {_COPY}") from error
        if path == Sink("mean"):
            raise InputError(
                "it needs calibrated means, which a sweep does not measure: give s(first) or "
                "s(zero)"
            )
    return path
