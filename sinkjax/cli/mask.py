"""Makes a mask from a sweep's records: the heads that are sinks leave full attention.

  sinkjax mask --results=results/quickstart
  sinkjax mask --results=results/quickstart --lengths=2,4,8 --path="w(4,32)"
  sinkjax mask --results=results/quickstart --quantile=0.8 --groups --seed=1

A head is chosen where it is a sink, by the sweep's definition and threshold, in at least
--min_share of the prompts at every length (a consistent head). With --quantile=q the share 1 - q of
all heads is chosen in its place, by their lowest mean score over the lengths. With --groups a
key/value group is chosen whole or not at all: only then does a mask free the keys and values that
its heads share.

Chosen heads take --path: s(first), s(zero) or w(sinks,recent), in words or first letters; or
copy_first_layer, the founding study's idea, in which they use the attention of layer 0's head of
their own index. All others stay full.

Beside the mask, --output, lies its control: as many heads a layer on the same paths, drawn at
random. What the mask is worth is what it does better than that.
"""

import dataclasses
import io
import pathlib

import numpy as np
from absl import flags

from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.errors import InputError, Problem, about
from sinkjax.files import replace_file
from sinkjax.masks.choose import random_control
from sinkjax.masks.file import Provenance, save_mask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path, Sink, parse_path
from sinkjax.masks.scores import consistent
from sinkjax.report.mask_map import mask_map
from sinkjax.report.masks import mask_table
from sinkjax.report.records import Record
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep.records import Curve, arrange

_COPY = "copy_first_layer"

_RESULTS = flags.DEFINE_string("results", "results/sweep", "The --output_dir of a sweep.")
_MODEL = flags.DEFINE_string("model", None, "Of the sweep's models; by default its first one.")
_SOURCE = flags.DEFINE_string("source", None, "Of its prompts and texts; by default the first.")
_BOS = flags.DEFINE_string("bos", None, "Of its BOS policies; by default the first.")
_DEFINITION = flags.DEFINE_string("definition", None, "Of its definitions; by default the first.")
_THRESHOLD = flags.DEFINE_float("threshold", None, "Of its thresholds; by default the first.")
_LENGTHS = flags.DEFINE_list("lengths", [], "Of its lengths; by default all of the source.")
_MIN_SHARE = flags.DEFINE_float(
    "min_share", 0.9, "Of the prompts in which a chosen head is a sink."
)
_QUANTILE = flags.DEFINE_float("quantile", None, "From 0 to 1: choose by rank, the rest above it.")
_GROUPS = flags.DEFINE_bool("groups", False, "Choose whole key/value groups.")
_PATH = flags.DEFINE_string("path", "s(first)", "Of the chosen heads.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the control.")
_OUTPUT = flags.DEFINE_string("output", None, "The mask's file; by default mask.json in --results.")


def main() -> None:
    path = _path()
    _check()
    curve = _curve()
    cells = _cells(curve)
    mask, control = _choose(cells, path)
    made_from = Provenance.from_records(cells, **_selection())
    drawn = {**made_from.selection, "control_of": mask.digest, "seed": _SEED.value}
    named = {"mask": (mask, made_from)}
    named["control"] = (control, dataclasses.replace(made_from, selection=drawn))
    console = terminal.console()
    console.print(f"{made_from.model}, {made_from.text}, {curve.criterion}", markup=False)
    num_kv_heads = curve.model["num_kv_heads"]
    terminal.print_table(console, mask_table(mask, control, num_kv_heads))
    for name, (one, provenance) in named.items():
        file = _file(name)
        save_mask(file, one, provenance=provenance)
        image = _draw(one, f"{name} of {provenance.model}", num_kv_heads, file)
        console.print(f"{name}: {file}, heat map: {image}", soft_wrap=True, highlight=False)


def _path() -> Path | None:
    """Of the chosen heads; None for copies of layer 0."""
    text = _PATH.value
    if text == _COPY:
        return None
    try:
        path = parse_path(text, ("window", "sink"))
    except InputError as error:
        raise InputError(Problem("path", text, f"{error}; or {_COPY}")) from error
    if path == Sink("mean"):
        raise InputError(
            Problem(
                "path",
                text,
                "it needs calibrated means, which a sweep does not measure: give s(first) or "
                "s(zero)",
            )
        )
    return path


def _check() -> None:
    """All that is wrong with the other flags, whatever the sweep holds."""
    problems = []
    if not 0 < _MIN_SHARE.value <= 1:
        problems.append(f"--min_share={_MIN_SHARE.value}: give a share above 0, of at most 1")
    if _QUANTILE.value is not None:
        if not 0 <= _QUANTILE.value <= 1:
            problems.append(f"--quantile={_QUANTILE.value}: give one from 0 to 1, such as 0.9")
        if _MIN_SHARE.present:
            problems.append("--quantile and --min_share are two ways to choose; give one of them")
    if _SEED.value < 0:
        problems.append(f"--seed={_SEED.value}: give 0 or more")
    if _file("mask").suffix != ".json":
        problems.append(f"--output={_OUTPUT.value}: let the name end in .json")
    if problems:
        raise InputError(*problems)


def _curve() -> Curve:
    """The part of the sweep that the flags name."""
    with about("results"):
        specification, records = read_records(_RESULTS.value)
    cells = [record for record in records if record["kind"] == "cell"]
    curves = []
    if cells:
        sweep = arrange(specification, cells)
        curves = [curve for group in sweep.groups for curve in group.curves]
    if not curves:
        raise InputError(
            f"--results={_RESULTS.value} holds no prompts' or texts' scores (yet): give the "
            "--output_dir of sinkjax sweep"
        )
    for flag, of in (
        (_MODEL, lambda curve: sweep.model_name(curve.model)),
        (_SOURCE, lambda curve: curve.source_name),
        (_BOS, lambda curve: curve.bos),
        (_DEFINITION, lambda curve: curve.definition),
        (_THRESHOLD, lambda curve: curve.threshold),
    ):
        known = list(dict.fromkeys(map(of, curves)))
        wanted = known[0] if flag.value is None else flag.value
        if wanted not in known:
            raise InputError(
                f"--{flag.name}={wanted} is not in --results={_RESULTS.value}, which has "
                f"{', '.join(map(str, known))}: give one of these, or sweep with it"
            )
        curves = [curve for curve in curves if of(curve) == wanted]
    return curves[0]


def _cells(curve: Curve) -> list[Record]:
    """Of the lengths that the flag names, or of all."""
    lengths = cli.numbers("lengths", _LENGTHS.value, int) or [*curve.lengths, *curve.missing]
    if unknown := sorted(set(lengths) - set(curve.lengths)):
        raise InputError(
            f"--lengths={','.join(map(str, unknown))}: {curve.source_name} was not measured there "
            f"(yet); the sweep has {', '.join(map(str, curve.lengths))}"
        )
    return [cell for cell in curve.cells if cell["length"] in lengths]


def _selection() -> dict[str, str | float]:
    """How heads are chosen, for the mask's file."""
    rule = (
        {"by": "consistent", "min_share": _MIN_SHARE.value}
        if _QUANTILE.value is None
        else {"by": "quantile", "quantile": _QUANTILE.value}
    )
    return {**rule, "unit": "group" if _GROUPS.value else "head", "path": _PATH.value}


def _choose(cells: list[Record], path: Path | None) -> tuple[SinkMask, SinkMask]:
    """The mask and its control."""
    num_kv_heads = cells[0]["model"]["num_kv_heads"] if _GROUPS.value else None
    first = path or Sink("first")  # copies are made of what was chosen, below
    if _QUANTILE.value is None:
        shares = np.min([cell["result"]["per_head"] for cell in cells], axis=0)
        mask = SinkMask.where(consistent(shares, _MIN_SHARE.value, num_kv_heads), first)
    else:
        lowest = np.min([cell["result"]["mean_score"] for cell in cells], axis=0)
        mask = SinkMask.from_quantile(
            lowest, quantile=_QUANTILE.value, path=first, num_kv_heads=num_kv_heads
        )
    control = random_control(mask, seed=_SEED.value, num_kv_heads=num_kv_heads)
    if path is None:
        mask, control = (SinkMask.copy_first_layer(one.masked) for one in (mask, control))
    if not mask.masked.any():
        lengths = ", ".join(str(cell["length"]) for cell in cells)
        raise InputError(
            f"no head is chosen at {lengths} tokens: name fewer --lengths, a lower --min_share or "
            "--threshold, or choose a --quantile"
        )
    return mask, control


def _file(name: str) -> pathlib.Path:
    """The mask's file, or its control's beside it."""
    path = pathlib.Path(_OUTPUT.value or pathlib.Path(_RESULTS.value, "mask.json"))
    return path if name == "mask" else path.with_suffix(f".{name}{path.suffix}")


def _draw(mask: SinkMask, name: str, num_kv_heads: int, file: pathlib.Path) -> pathlib.Path:
    """Writes a mask's heat map beside its file."""
    content, path = io.BytesIO(), file.with_suffix(".png")
    mask_map(mask, name, num_kv_heads).savefig(content)
    try:
        replace_file(path, content.getvalue())
    except OSError as error:
        raise InputError(
            f"--output: the heat map cannot be written to {path}: {error.strerror}"
        ) from error
    return path
