"""Makes a mask from a sweep's records or another project's files, and gives masks to others.

  sinkjax mask --results=results/quickstart
  sinkjax mask --results=results/quickstart --lengths=2,4,8 --paths="w(4,32)"
  sinkjax mask --results=results/quickstart --quantile=0.8 --units=group --seed=1
  sinkjax mask --from_folder=Meta-Llama-3.1-8B-Instruct --model=shape:llama-3.1-8b --shares=0.5
  sinkjax mask --mask=results/search/mask.json --to_folder=duo --push=USER/NAME

From a sweep, the heads that are sinks leave full attention.

A head is chosen where it is a sink, by the sweep's definition and threshold, in at least
--min_share of the prompts at every length (a consistent head). With --quantile=q the share 1 - q of
all heads is chosen instead: those whose mean score, at the length where it is lowest, is highest.
With --units=group a key/value group is chosen whole or not at all: only then does a mask free the
keys and values that its heads share.

Chosen heads take --paths: s(first), s(zero) or w(sinks,recent), in words or first letters; or
copy_first_layer, by which they use the attention of layer 0's head of their own index. All others
stay full.

--from_folder reads what others have published for --model: DuoAttention's and RLKV's scores of
key/value heads, of which those below --thresholds, below the --quantile (their sparsity) or the
lowest --shares are masked, with the window of the folder's config.json or of --paths; or MoA's
spans of heads, for inputs of --lengths tokens.

Beside the mask, --mask_file, lies its control: as many heads a layer on the same paths, drawn at
random. What the mask is worth is what it does better than that.

--mask takes an existing mask in place of making one. --measured adds to its file what runs of
`sinkjax quality`, `retrieval` and `timing` with it have found. --to_folder writes DuoAttention's
files of a mask in which every key/value group is full or on one window. --push uploads a mask to
the Hub, as sinkjax.load_mask("hf://USER/NAME") and --mask=hf://USER/NAME read it, with a card: what
its file says that it costs, beside its controls, and how it is made again. The token is
huggingface-hub's.
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from sinkjax.cli import terminal
from sinkjax.cli.card import mask_card
from sinkjax.cli.collect import MEASURED, collect
from sinkjax.cli.tool import ShapeSettings, Tool, write_whole
from sinkjax.errors import InputError, Problem, about
from sinkjax.masks.choose import random_control
from sinkjax.masks.file import Provenance, SavedMask, load_mask, save_mask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path, Sink, parse_path
from sinkjax.masks.published import GroupScores, read_published, write_published
from sinkjax.masks.scores import consistent
from sinkjax.models.config import LlamaConfig
from sinkjax.report.masks import mask_map, mask_table
from sinkjax.report.records import Record
from sinkjax.studies.fields import understood
from sinkjax.studies.results import read_records
from sinkjax.studies.settings import MOST_SEED, at_least, setting
from sinkjax.studies.sweep.records import Curve, arrange

_COPY = "copy_first_layer"
_MIN_SHARE = 0.9
_OF_BOTH = ("thresholds", "lengths", "quantile", "paths", "mask_file")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "results": ("source", "bos", "definitions", "min_share", *_OF_BOTH),
    "from_folder": ("shares", *_OF_BOTH),
    "mask": ("measured", "mask_file"),
}
"""The settings that say which mask is made and where, by what it is made from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeMask(Tool):
    """Chooses heads by a sweep's records, or another project's, and writes the mask and control."""

    renamed: ClassVar[Mapping[str, str]] = {
        "path": "paths",
        "groups": "units",
        "definition": "definitions",
        "threshold": "thresholds",
        "share": "shares",
        "length": "lengths",
        "output": "mask_file",
    }

    results: str = setting("results/sweep", "Folder of a sweep's records: its --output_dir.")
    from_folder: str | None = setting(
        None,
        "Folder to read in place of a sweep: of DuoAttention or RLKV, with scores of key/value "
        "heads, or of MoA, with heads' spans.",
    )
    mask: str | None = setting(
        None,
        "File of a mask, name of a shipped one or hf://USER/NAME[@REVISION], to take in place of "
        "making one.",
    )
    model: str | None = setting(
        None,
        "Model of the sweep, by default its first; the model that --from_folder is for, or "
        "shape:NAME; of --mask by default the one that it was made for.",
    )
    source: str | None = setting(None, "Prompts or text of the sweep; by default the first.")
    bos: str | None = setting(None, "BOS policy of the sweep; by default its first.")
    definitions: str | None = setting(None, "Definition of the sweep; by default its first.")
    thresholds: float | None = setting(
        None,
        "Threshold of the sweep, by default its first; or the score in --from_folder below which a "
        "key/value head is masked.",
    )
    lengths: tuple[int, ...] = setting(
        (),
        "Lengths of the sweep, by default all of the source; or the one length, of a prompt with "
        "its new tokens, that MoA's spans are for.",
    )
    min_share: float | None = setting(
        None, f"Share of the prompts in which a chosen head is a sink; by default {_MIN_SHARE}."
    )
    quantile: float | None = setting(
        None,
        "Quantile of the scores, from 0 to 1, as the threshold: of a sweep's, heads above it are "
        "masked; of --from_folder's, where it is called the sparsity, those below it.",
    )
    shares: float | None = setting(
        None,
        "Share of the key/value heads of --from_folder that is masked, the lowest scores first.",
    )
    units: Literal["head", "group"] = setting(
        "head", "What is chosen of a sweep: single heads, or whole key/value groups."
    )
    paths: str | None = setting(
        None,
        f"Path of the chosen heads, by default s(first), or {_COPY}; of --from_folder a window in "
        "place of that of its config.json.",
    )
    seed: int = setting(0, "Seed of the control.")
    mask_file: str | None = setting(
        None,
        "File for the mask; by default mask.json in --results or --from_folder, or --mask itself.",
    )
    measured: tuple[str, ...] = setting(
        (),
        "Output folders of quality, retrieval and timing runs with --mask, whose results go into "
        "its file.",
        repeated=True,
    )
    to_folder: str | None = setting(
        None, "Folder for the mask as DuoAttention's full_attention_heads.tsv and config.json."
    )
    push: str | None = setting(
        None,
        "Repository of the Hub, USER/NAME, to upload the mask and a card of it to; it is made, "
        "public, where it is missing.",
    )

    def run(self) -> None:
        if problems := list(self._problems()):
            raise InputError(*problems)
        if self.mask is not None:
            with about("mask"):
                saved = load_mask(self.mask)
            if self.measured:
                saved = self._measured(saved)
            self._give(saved)
        elif self.from_folder is not None:
            self._import()
        else:
            path = _read_path(self.paths or "s(first)")
            with about("results"):
                specification, records = read_records(self.results)
            with understood(records):
                self._choose_and_save(specification, records, path)

    def _choose_and_save(
        self, specification: Mapping[str, Any], records: Sequence[Record], path: Path | None
    ) -> None:
        """Chooses the mask and its control by a sweep, shows and writes them."""
        curve = self._curve(specification, records)
        cells = self._cells(curve)
        mask, control = self._choose(cells, path)
        rule = {"by": "quantile", "quantile": self.quantile}
        if self.quantile is None:
            rule = {"by": "consistent", "min_share": self._share}
        made_from = Provenance.from_records(
            cells, **rule, unit=self.units, path=self.paths or "s(first)"
        )
        title = f"{made_from.model}, {made_from.text}, {curve.criterion}"
        self._save(title, mask, control, made_from, curve.model["num_kv_heads"])

    def _measured(self, saved: SavedMask) -> SavedMask:
        """Writes --mask again with what runs have found of it, and reads that."""
        file = self._file()
        quality = collect(saved, self.measured)
        save_mask(file, saved.mask, provenance=saved.provenance, quality=quality, fills=saved.fills)
        counts = (f"{len(quality[kind])} of {kind}" for kind in MEASURED if kind in quality)
        _say(f"mask: {file}, which says {', '.join(counts)}")
        return load_mask(file)

    def _import(self) -> None:
        """Makes the mask of what another project has published, shows and writes it."""
        if self.model is None:
            raise InputError(Problem("model", None, "name the model that the heads are of"))
        config = ShapeSettings(model=self.model).load_config()
        with about("from_folder"):
            published = read_published(self.from_folder)
        how: dict[str, Any] = {}
        if isinstance(published, GroupScores):
            rules = {"threshold": self.thresholds, "quantile": self.quantile, "share": self.shares}
            window = None
            if self.paths is not None:
                with about("paths", self.paths):
                    window = parse_path(self.paths, ("window",))
            mask = published.mask(config, **rules, window=window)
            how = {name: rule for name, rule in rules.items() if rule is not None}
            how |= {} if window is None else {"path": str(window)}
        else:
            for name in ("thresholds", "quantile", "shares", "paths"):
                if (value := getattr(self, name)) is not None:
                    raise InputError(
                        Problem(name, value, "MoA's spans leave no choice: leave it out")
                    )
            if len(self.lengths) != 1:
                text = "MoA's spans are for inputs of one length: give it, such as 8192"
                raise InputError(Problem("lengths", self.lengths or None, text))
            mask = published.mask(config, *self.lengths)
        advice = "give higher --thresholds, --quantile or --shares, or longer --lengths"
        _check_masked(mask, f"in {self.from_folder}: {advice}")
        whole = not mask.group_counts(config.num_kv_heads)["mixed"]
        control = random_control(
            mask, seed=self.seed, num_kv_heads=config.num_kv_heads if whole else None
        )
        folder = pathlib.Path(self.from_folder).resolve().name
        made_from = Provenance(
            model=self.model,
            lengths=self.lengths,
            selection={"method": "published", "folder": folder, "files": published.files, **how},
        )
        self._save(f"{self.model}, {folder}", mask, control, made_from, config.num_kv_heads)

    def _save(
        self,
        title: str,
        mask: SinkMask,
        control: SinkMask,
        made_from: Provenance,
        num_kv_heads: int,
    ) -> None:
        """Shows a mask and its control and writes them, and what else is asked for."""
        drawn = {**made_from.selection, "control_of": mask.digest, "seed": self.seed}
        console = terminal.console()
        console.print(title)
        terminal.print_table(console, mask_table(mask, control, num_kv_heads))
        control_from = dataclasses.replace(made_from, selection=drawn)
        file = self._file()
        for name, to, made, provenance in (
            ("mask", file, mask, made_from),
            ("control", file.with_suffix(".control.json"), control, control_from),
        ):
            save_mask(to, made, provenance=provenance)
            content, image = io.BytesIO(), to.with_suffix(".png")
            mask_map(made, f"{name} of {provenance.model}", num_kv_heads).savefig(content)
            write_whole("mask_file", image, content.getvalue())
            _say(f"{name}: {to}, heat map: {image}")
        self._give(load_mask(file), num_kv_heads)

    def _give(self, saved: SavedMask, num_kv_heads: int | None = None) -> None:
        """Writes a mask for others, as far as that is asked for.

        Args:
          num_kv_heads: K; None to read it from the mask's model.
        """
        if self.to_folder is not None:
            if num_kv_heads is None:
                num_kv_heads = self._config_for(saved).num_kv_heads
            with about("to_folder", self.to_folder):
                write_published(self.to_folder, saved.mask, num_kv_heads)
            _say(f"DuoAttention's files: {self.to_folder}")
        if self.push is not None:
            from sinkjax.masks.hub import push_mask  # slow to import

            with about("push", self.push):
                address = push_mask(self.push, saved, mask_card(self.push, saved))
            _say(f'pushed: {address}\nload it with sinkjax.load_mask("hf://{self.push}")')

    def _config_for(self, saved: SavedMask) -> LlamaConfig:
        """The config of the model that a mask is for."""
        model = self.model or saved.provenance.model
        if model is None:
            raise InputError(Problem("model", None, "the mask names none: name the one it is for"))
        config = ShapeSettings(model=model).load_config()
        with about("mask", self.mask):
            saved.check(config)
        return config

    def _problems(self) -> Iterator[Problem | str]:
        """The problems of the settings, whatever the sweep holds."""
        if self.mask is not None and self.from_folder is not None:
            yield "--mask and --from_folder are two masks; give one of them"
        chosen_from = next(
            name for name in ("mask", "from_folder", "results") if getattr(self, name) is not None
        )
        for name in dict.fromkeys(name for names in _CHOICES.values() for name in names):
            if getattr(self, name) not in (None, ()) and name not in _CHOICES[chosen_from]:
                text = f"--{chosen_from} makes no use of it; leave it out"
                yield Problem(name, getattr(self, name), text)
        if self.mask is not None and not (self.measured or self.to_folder or self.push):
            text = "say what to do with it: give --measured, --push, or --to_folder"
            yield Problem("mask", self.mask, text)
        if self.mask_file is not None and self.mask is not None and not self.measured:
            yield Problem(
                "mask_file", self.mask_file, "nothing is written into it without --measured"
            )
        if self.min_share is not None and not 0 < self.min_share <= 1:
            yield Problem("min_share", self.min_share, "give a share above 0, of at most 1")
        if self.quantile is not None and not 0 <= self.quantile <= 1:
            yield Problem("quantile", self.quantile, "give one from 0 to 1, such as 0.9")
        if self.quantile is not None and self.min_share is not None:
            yield "--quantile and --min_share are two ways to choose; give one of them"
        yield from at_least(self, most=MOST_SEED, seed=0)
        if (self.mask is None or self.measured) and self._file().suffix != ".json":
            text = "name a file for the mask, whose name ends in .json"
            yield Problem("mask_file", self.mask_file, text)

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
            ("definitions", lambda curve: curve.definition),
            ("thresholds", lambda curve: curve.threshold),
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
        lengths = ", ".join(str(cell["length"]) for cell in cells)
        _check_masked(
            mask,
            f"at {lengths} tokens: name fewer --lengths, a lower --min_share or --thresholds, "
            + ("" if num_kv_heads is None else "choose single heads by --units=head, ")
            + "or choose a --quantile",
        )
        return mask, control

    def _file(self) -> pathlib.Path:
        made_in = self.mask or pathlib.Path(self.from_folder or self.results, "mask.json")
        return pathlib.Path(self.mask_file or made_in)


def _say(text: str) -> None:
    terminal.console().print(text, soft_wrap=True, highlight=False)


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


def _check_masked(mask: SinkMask, advice: str) -> None:
    if not mask.masked.any():
        raise InputError(f"no head is chosen {advice}")
