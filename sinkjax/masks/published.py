"""Masks as other projects publish them: read from their folders, written to DuoAttention's.

  full_attention_heads.tsv  DuoAttention (Xiao et al., arXiv:2410.10819): a line a layer, a score a
                            key/value head, 1 for one that needs full attention; config.json beside
                            it has `sink_size` and `recent_size`, the window of all others
  adapter_weights.tsv       RLKV (arXiv:2510.08525): the same scores; its window is its scripts'
  moa_alpha_beta.json       MoA (Fu et al., arXiv:2406.14909): for each layer and head the span
                            alpha + beta * N of tokens that it sees of an input of N

`sink_size` and `recent_size` are the c and w of `Window`.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from sinkjax.errors import (
    InputError,
    Problem,
    check_kind,
    check_path_name,
    explaining,
    number,
    whole,
)
from sinkjax.files import check_path, parse_json, read_file, replace_file
from sinkjax.masks.file import MOST_BYTES
from sinkjax.masks.mask import Shape, SinkMask
from sinkjax.masks.paths import Full, Path, Window

_SCORES, _SPANS, _CONFIG = "full_attention_heads.tsv", "moa_alpha_beta.json", "config.json"
_FILES = (_SCORES, "adapter_weights.tsv", _SPANS)

# How MoA's own code makes caches of its spans.
_MOA_SINKS, _MOA_LEAST, _MOA_BLOCK = 64, 128, 64
_LONGEST = 10**9


@runtime_checkable
class GroupedShape(Shape, Protocol):
    """A `Shape` that knows its key/value heads: a config is one."""

    @property
    def num_kv_heads(self) -> int: ...


@dataclasses.dataclass(frozen=True, eq=False)
class GroupScores:
    """How much each key/value head needs full attention, as DuoAttention and RLKV publish it.

    Attributes:
      scores: float64 [L, K], within [0, 1].
      window: of the heads that do without; None where the folder has no config.json.
      files: the sha256 of each file that was read, by name.
    """

    scores: Float[np.ndarray, "L K"]
    window: Window | None
    files: Mapping[str, str]

    def mask(
        self,
        config: GroupedShape,
        *,
        threshold: float | None = None,
        quantile: float | None = None,
        share: float | None = None,
        window: Window | None = None,
    ) -> SinkMask:
        """Returns the mask of the key/value heads of low scores, by one of three rules.

        Args:
          config: of the model: L layers, N heads on K key/value heads.
          threshold: heads whose score is below it are masked.
          quantile: the same with this quantile of all scores as the threshold, which both projects
            call the sparsity; of 1 all are masked. Heads that tie with it stay `full`: no noise is
            added, as theirs is, to break ties.
          share: this share of the L·K heads is masked, to the nearest whole number, the lowest
            scores first; ties are broken by (layer, head).
          window: in place of the folder's own.

        Raises:
          InputError: for a model of another shape, for no rule or several, for one outside [0, 1],
            and where there is no window.
        """
        needed = "a model's config, such as model.config,"
        check_kind("config", config, GroupedShape, needed)
        check_kind("window", window, Window | None, "a Window, or none,")
        _check_shape("scores", self.scores, config, config.num_kv_heads, "key/value heads")
        if (window := window or self.window) is None:
            raise InputError(
                f"there is no {_CONFIG} beside the scores, which would say what the other heads "
                "see: give a window, such as window(16,64)"
            )
        masked = self._low(threshold=threshold, quantile=quantile, share=share)
        group = config.num_heads // config.num_kv_heads
        return SinkMask.where(np.repeat(masked, group, axis=1), window)

    def _low(self, **rules: float | None) -> Bool[np.ndarray, "L K"]:
        given = {name: value for name, value in rules.items() if value is not None}
        if len(given) != 1:
            raise InputError(
                "give a threshold, a quantile or a share, one of them: it says which heads leave "
                "full attention"
            )
        ((rule, value),) = given.items()
        if not 0 <= number(value) <= 1:
            raise InputError(Problem(rule, value, "give one from 0 to 1, such as 0.5"))
        if rule == "share":
            order = np.argsort(self.scores, axis=None, kind="stable")
            masked = np.zeros(self.scores.size, bool)
            masked[order[: round(value * masked.size)]] = True
            return masked.reshape(self.scores.shape)
        if rule == "quantile":
            value = np.inf if value == 1 else np.quantile(self.scores, value)
        return self.scores < value


@dataclasses.dataclass(frozen=True, eq=False)
class Spans:
    """How many tokens each head sees by the length of an input, as MoA publishes it.

    Attributes:
      alphas, betas: float64 [L, N], tokens and tokens a token of the input.
      files: as of `GroupScores`.
    """

    alphas: Float[np.ndarray, "L N"]
    betas: Float[np.ndarray, "L N"]
    files: Mapping[str, str]

    def mask(self, config: Shape, length: int) -> SinkMask:
        """Returns the mask for inputs of a length, generated tokens included.

        A span is what MoA's own code makes of alpha + beta * length: 128 tokens at least, the next
        multiple of 64, of which the first 64 tokens are sinks. A head that sees all is `full`.

        Raises:
          InputError: for a model of another shape, and a length that no input has.
        """
        check_kind("config", config, Shape, "a model's config, such as model.config,")
        _check_shape("spans", self.alphas, config, config.num_heads, "heads")
        if not 1 <= (whole(length) or 0) <= _LONGEST:
            text = f"give the tokens of an input, from 1 to {_LONGEST:,}"
            raise InputError(Problem("length", length, text))
        with np.errstate(over="ignore"):
            spans = np.maximum(np.trunc(self.alphas + self.betas * length), _MOA_LEAST)
        spans = np.ceil(spans / _MOA_BLOCK) * _MOA_BLOCK

        def path(span: float) -> Path:
            return Full() if span >= length else Window(_MOA_SINKS, int(span) - _MOA_SINKS)

        return SinkMask(tuple(tuple(map(path, layer)) for layer in spans.tolist()))


def _check_shape(what: str, values: np.ndarray, config: Shape, heads: int, kind: str) -> None:
    if values.shape != (config.num_layers, heads):
        layers, own = values.shape
        raise InputError(
            f"the {what} are of {layers} layers of {own} {kind}, the model has {config.num_layers} "
            f"layers of {heads}: give the model that they were published for"
        )


def read_published(folder: str | os.PathLike[str]) -> GroupScores | Spans:
    """Reads what a project has published, of which `mask` makes a mask for a model.

    Args:
      folder: with one of the files above.

    Raises:
      InputError: where there is none of them, or several, or one is not of its form.
    """
    folder = check_path_name("folder", folder, "a folder")
    present = [name for name in _FILES if os.path.isfile(folder / name)]
    if len(present) != 1:
        raise InputError(
            f"{folder} has {' and '.join(present) or 'none'} of {', '.join(_FILES)}: give a folder "
            "with one of them, of DuoAttention, RLKV or MoA"
        )
    contents = {present[0]: _read(folder / present[0])}
    if present[0] != _SPANS and os.path.isfile(folder / _CONFIG):
        contents[_CONFIG] = _read(folder / _CONFIG)
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    try:
        if present[0] == _SPANS:
            fields = parse_json(contents[_SPANS], strict=True)
            alphas, betas = (_numbers(fields, name) for name in ("alphas", "betas"))
            if alphas.shape != betas.shape:
                raise ValueError(f"alphas are {alphas.shape}, betas {betas.shape}")
            return Spans(alphas, betas, files)
        scores = _scores(contents[present[0]])
    except ValueError as error:
        raise InputError(
            f"{folder / present[0]} cannot be read ({error}); give the file as it was published"
        ) from error
    return GroupScores(scores, _window(folder / _CONFIG, contents.get(_CONFIG)), files)


def write_published(folder: str | os.PathLike[str], mask: SinkMask, num_kv_heads: int) -> None:
    """Writes a mask as DuoAttention's full_attention_heads.tsv and config.json.

    Scores are 1 for `full` and 0 for the window: every threshold above 0 reads the mask back.

    Args:
      folder: made where it is missing.
      mask: in which every group is `full` or on the one window that the format has room for.
      num_kv_heads: K.

    Raises:
      InputError: listing every group that does not fit the format; for a folder that has another
        config.json, such as a model's, or what another project published, or cannot be written.
      ValueError: for K that does not divide N.
    """
    folder = check_path_name("folder", folder, "a folder")
    check_kind("mask", mask, SinkMask, "a SinkMask")
    groups = mask.groups(num_kv_heads)
    windows = Counter(
        path for layer in mask.heads for path in layer if isinstance(path, Window)
    ).most_common(1)
    window = windows[0][0] if windows else Window(0, 1)  # of no head
    if problems := list(_misfits(groups, window)):
        raise InputError(*problems)
    own = (_SCORES, _CONFIG) if os.path.isfile(folder / _SCORES) else ()
    if others := [n for n in (*_FILES, _CONFIG) if os.path.isfile(folder / n) and n not in own]:
        raise InputError(
            f"{folder} has {' and '.join(others)} of something else: give another folder"
        )
    scores = np.array([[float(group[0] == Full()) for group in layer] for layer in groups])
    table = io.BytesIO()
    np.savetxt(table, scores, delimiter="\t")
    config = json.dumps({"sink_size": window.sinks, "recent_size": window.recent})
    with explaining(f"{folder} cannot be written", "free space there, or give another folder"):
        check_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / _SCORES, table.getvalue())
        replace_file(folder / _CONFIG, f"{config}\n".encode())


def _misfits(groups: list[list[tuple[Path, ...]]], window: Window) -> Iterator[str]:
    """What keeps a mask out of DuoAttention's format, whose one window this would be."""
    for layer, of_layer in enumerate(groups):
        for kv_head, group in enumerate(of_layer):
            where = f"layer {layer}, key/value head {kv_head}"
            if len(set(group)) > 1:
                paths = ", ".join(f"{n} {path}" for path, n in Counter(group).items())
                yield f"{where} has heads on several paths ({paths}); the format has one for all"
            elif group[0] not in (Full(), window):
                yield f"{where} is on {group[0]}; the format has full and one window, {window}"


def _read(file: pathlib.Path) -> bytes:
    with explaining(f"{file} cannot be read", "give a folder whose files can be"):
        return read_file(file, MOST_BYTES)


def _scores(content: bytes) -> Float[np.ndarray, "L K"]:
    """Reads a table of scores; those of training are a little outside [0, 1] and clipped."""
    text = content.decode("utf-8-sig")
    if not text.strip():
        raise ValueError("it is empty")
    lines = io.StringIO(text, newline=None)  # of any ends
    scores = np.loadtxt(lines, delimiter="\t", comments=None, ndmin=2)
    if not np.isfinite(scores).all():
        raise ValueError("not all scores are finite")
    return np.clip(scores, 0, 1)


def _window(file: pathlib.Path, content: bytes | None) -> Window | None:
    """Reads the window of a config.json; None where there is none."""
    if content is None:
        return None
    try:
        fields = parse_json(content, strict=True)
        sizes = [fields[name] for name in ("sink_size", "recent_size")]
        if not all(type(size) is int for size in sizes):
            raise ValueError(f"they are {sizes}")
        return Window(*sizes)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} has no whole sink_size and recent_size ({error}); give the file as it was "
            "published"
        ) from error


def _numbers(fields: Any, name: str) -> Float[np.ndarray, "L N"]:
    """Reads one list a layer, as long as one another, of one number a head."""
    rows = fields.get(name) if isinstance(fields, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise ValueError(f"{name} is no list of layers' lists")
    if not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError(f"{name} has layers of {sorted({len(row) for row in rows})} heads")
    if any(type(value) not in (int, float) for row in rows for value in row):
        raise ValueError(f"not all of {name} are numbers")
    try:
        return np.array(rows, np.float64)
    except OverflowError as error:
        raise ValueError(f"{name} has a number that is too large") from error
