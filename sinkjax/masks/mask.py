"""Which path every head takes: a static value, known when JAX traces.

A mask is never an array that a program reads: it decides which program there is.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from sinkjax.errors import (
    InputError,
    Problem,
    check_array,
    check_items,
    check_kind,
    check_whole,
    number,
    whole,
)
from sinkjax.masks.chips import widened
from sinkjax.masks.paths import KINDS, Copy, Full, Path, Window, native
from sinkjax.masks.scores import Scores, consistent, group_size, ranks, sink_shares
from sinkjax.masks.text import MOST_HEADS, TOO_MANY, read_heads, write_heads

Of = TypeVar("Of")
"""What a layer has."""


@runtime_checkable
class Shape(Protocol):
    """What masks know of a model: a config is one."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


@dataclasses.dataclass(frozen=True, repr=False)
class SinkMask:
    """The path of every head. Hashable and equal by value: equal masks are one program.

    Attributes:
      heads: one tuple a layer, one path a query head: `heads[l][n]`.

    Raises:
      InputError: listing every layer with another number of heads, everything that is no path, and
        every impossible copy: of a layer that is not earlier, of a head that does not exist, of a
        head that is itself `copy` or `sink`.
    """

    heads: tuple[tuple[Path, ...], ...]

    def __post_init__(self) -> None:
        text = "layers of paths are needed, such as [[Full(), Sink()]]"
        layers = check_items("heads", self.heads, text)
        heads = tuple(check_items("heads", layer, text) for layer in layers)
        object.__setattr__(self, "heads", heads)
        problems = list(_shape_problems(self.heads)) or list(_copy_problems(self.heads))
        if problems:
            raise InputError(*problems)

    @classmethod
    def full(cls, config: Shape) -> "SinkMask":
        """Returns the baseline's mask."""
        _check_shape(config)
        return cls(((Full(),) * config.num_heads,) * config.num_layers)

    @classmethod
    def where(cls, chosen: Bool[np.ndarray, "L N"], path: Path) -> "SinkMask":
        """Returns the mask with one path for the chosen heads and `full` for all others.

        Raises:
          InputError: for a copy that is impossible for a chosen head.
          ValueError: for anything but bool [L, N].
        """
        check_kind("path", path, Path, "a path, such as Sink(),")
        return cls(
            tuple(tuple(path if head else Full() for head in layer) for layer in _chosen(chosen))
        )

    @classmethod
    def copy_first_layer(cls, chosen: Bool[np.ndarray, "L N"]) -> "SinkMask":
        """Returns the founding study's mask: chosen heads copy layer 0's head of their own index.

        Layer 0's heads are what is copied, and `full` whether chosen or not.

        Raises:
          ValueError: for anything but bool [L, N].
        """
        return cls(
            tuple(
                tuple(
                    Copy(0, index) if layer > 0 and head else Full()
                    for index, head in enumerate(heads)
                )
                for layer, heads in enumerate(_chosen(chosen))
            )
        )

    @classmethod
    def from_scores(
        cls,
        scores: Scores,
        *,
        threshold: float,
        path: Path,
        definition: str = "mean",
        min_share: float = 0.9,
        num_kv_heads: int | None = None,
    ) -> "SinkMask":
        """Returns the mask of the heads that are sinks in at least a given share of the prompts.

        Args:
          scores: of P prompts or, of one prompt or averaged over prompts, without that axis.
          threshold: an attention share, within (0, 1); sinks are strictly above it.
          path: of the chosen heads.
          definition: of the scores. Those of `log_odds` are held against the threshold's log-odds.
          min_share: of the prompts, within (0, 1].
          num_kv_heads: K, to choose the groups whose heads are all chosen; None for heads one by
            one.

        Raises:
          ValueError: for scores of another shape or not finite, a threshold outside (0, 1), a
            min_share outside (0, 1], or K that does not divide N. Also as `where`.
        """
        shares = sink_shares([scores], definition, threshold)
        return cls.where(consistent(shares, min_share, num_kv_heads), path)

    @classmethod
    def from_quantile(
        cls, scores: Scores, *, quantile: float, path: Path, num_kv_heads: int | None = None
    ) -> "SinkMask":
        """Returns the mask of the share 1 - quantile of all heads that scores highest.

        Args:
          scores: as of `from_scores`; their mean over prompts counts.
          quantile: within [0, 1]; 0.9 chooses a tenth of the heads, to the nearest whole number.
          path: of the chosen heads.
          num_kv_heads: K, to choose that share of the groups, each by its lowest head; None for
            heads one by one.

        Raises:
          ValueError: for a quantile outside [0, 1], and as `from_scores`.
        """
        if not 0 <= number(quantile) <= 1:
            raise ValueError(f"quantile is {quantile}; it has to lie between 0 and 1")
        places = ranks(scores, num_kv_heads)
        return cls.where(places < round((1 - quantile) * (places.max() + 1)), path)

    @classmethod
    def from_text(cls, text: str, length: int | None = None) -> "SinkMask":
        """Reads the text form (`sinkjax.masks.text`), of which `str` is the inverse.

        Args:
          text: of all layers. Its windows may grow with a length, as in `w(4,32+L/16)`.
          length: L, in tokens, of those that do.

        Raises:
          InputError: listing all that cannot be read, or is not a possible mask.
        """
        check_kind("text", text, str, 'a mask\'s text, such as "L0: 9f",')
        return cls(read_heads(text, length))

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.heads)

    @property
    def num_heads(self) -> int:
        """N."""
        return len(self.heads[0])

    @property
    def masked(self) -> Bool[np.ndarray, "L N"]:
        """The masked heads, those on any path but `full`."""
        return ~self.on(Full())

    def on(self, path: Path) -> Bool[np.ndarray, "L N"]:
        """Returns the heads on a path."""
        return np.array([[own == path for own in layer] for layer in self.heads])

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the text form: equal for equal masks, whatever they were made from."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    def __hash__(self) -> int:
        # Kept with the digest: JAX hashes a static value at every call.
        return int(self.digest[:15], 16)

    def __str__(self) -> str:
        return write_heads(self.heads)

    def __repr__(self) -> str:
        return f"SinkMask.from_text({str(self)!r})"

    def replaced(self, path: Callable[[Path, Of], Path], of_layers: Sequence[Of]) -> "SinkMask":
        """Returns the mask of the paths that a function gives for every head.

        Args:
          path: called with the path that a head has, and with what its layer has.
          of_layers: L of these.
        """
        check_kind("path", path, Callable, "a function")
        own = self._of_layers("of_layers", of_layers)
        return SinkMask(
            tuple(
                tuple(path(p, of_layer) for p in paths)
                for paths, of_layer in zip(self.heads, own, strict=True)
            )
        )

    def within(self, windows: Sequence[int | None]) -> "SinkMask":
        """Returns what heads see in layers that have windows of the model's own.

        Args:
          windows: of each layer, in tokens; None for a layer without. Empty for a model without.
        """

        def path(p: Path, window: int | None) -> Path:
            return native(p, window) if isinstance(p, Full | Window) else p

        return self._beside(windows, path)

    def hiding(self, windows: Sequence[int | None]) -> "SinkMask":
        """Returns the mask without windows that hide nothing: those of the model are no wider.

        Args:
          windows: as of `within`.
        """

        def path(p: Path, window: int | None) -> Path:
            return Full() if isinstance(p, Window) and window and p.recent >= window else p

        return self._beside(windows, path)

    def check(self, config: Shape) -> None:
        """Raises InputError where the mask is for a model of another shape."""
        _check_shape(config)
        ours, models = (self.num_layers, self.num_heads), (config.num_layers, config.num_heads)
        if ours != models:
            raise InputError(
                f"the mask is for {ours[0]} layers of {ours[1]} heads, the model has {models[0]} "
                f"layers of {models[1]}: use a mask that was made for this model"
            )

    def counts(self) -> dict[str, int]:
        """Returns how many heads take each path, by its kind, in the order of `KINDS`."""
        return _count(path.kind for layer in self.heads for path in layer)

    def groups(self, num_kv_heads: int) -> list[list[tuple[Path, ...]]]:
        """Returns the paths of each layer's K groups; ValueError where K does not divide N."""
        size = group_size(self.num_heads, num_kv_heads)
        starts = range(0, self.num_heads, size)
        return [[layer[start : start + size] for start in starts] for layer in self.heads]

    def group_counts(self, num_kv_heads: int) -> dict[str, int]:
        """Returns how many of the L·K groups take each kind with all their heads, or are "mixed".

        Those of `sink` lose all key and value work.

        Raises:
          ValueError: where K does not divide N.
        """
        groups = itertools.chain(*self.groups(num_kv_heads))
        kinds = [{path.kind for path in paths} for paths in groups]
        alone = [of.pop() if len(of) == 1 else "mixed" for of in kinds]
        return _count(alone, (*KINDS, "mixed"))

    def in_groups(self, num_kv_heads: int) -> bool:
        """Returns whether the heads of every key/value group are on one path.

        Raises:
          ValueError: where K does not divide N.
        """
        groups = itertools.chain(*self.groups(num_kv_heads))
        return all(len(set(paths)) == 1 for paths in groups)

    def balanced(
        self,
        chips: int,
        num_kv_heads: int,
        *,
        costs: Float[np.ndarray, "L N"] | None = None,
    ) -> "SinkMask":
        """Returns the mask in which every layer has on each chip what it has on the fullest.

        Heads take wider paths, up to `full`, where their chip, which runs the same program as the
        others, would wait for them. What such a mask saves is what this one would save on chips.

        Args:
          chips: over which key/value heads are divided, the size of the mesh's axis `model`.
          num_kv_heads: K.
          costs: of masking each head, the larger the worse; of heads that could as well be
            widened the costliest are. None for the last ones.

        Raises:
          InputError: for chips that do not divide the key/value heads, and `copy` heads.
          ValueError: where K does not divide N.
        """
        size = group_size(self.num_heads, num_kv_heads)
        count = whole(chips) or 0
        if count < 1 or num_kv_heads % count:
            text = (
                f"{num_kv_heads} key/value heads are not divided by it; give a number that divides "
                "them, and lay rows over the other chips"
            )
            raise InputError(Problem("chips", chips, text))
        if self.counts()["copy"]:
            raise InputError(
                "the mask has copy heads, whose patterns may come from heads of other chips: "
                "balance it without them, or lay it over neurons, where any mask is even"
            )
        shape = self.num_layers, self.num_heads
        costs = np.zeros(shape) if costs is None else check_array("costs", costs)
        if costs.shape != shape or costs.dtype.kind not in "iuf":
            text = f"they are {costs.dtype} {costs.shape}; numbers {list(shape)} are needed"
            raise InputError(Problem("costs", None, text))
        layers = zip(self.heads, costs.tolist(), strict=True)
        return SinkMask(tuple(widened(paths, size, count, of) for paths, of in layers))

    def _of_layers(self, field: str, values: Sequence[Of]) -> tuple[Of, ...]:
        """What each layer has."""
        own = check_items(field, values, "what each layer has is needed")
        if len(own) != self.num_layers:
            text = f"they are {len(own)}; one for each of {self.num_layers} layers is needed"
            raise InputError(Problem(field, None, text))
        return own

    def _beside(
        self, windows: Sequence[int | None], path: Callable[[Path, int | None], Path]
    ) -> "SinkMask":
        """The mask of the paths that a function gives beside windows, of a model that has some."""
        given = [
            None if window is None else check_whole("windows", window, 1)
            for window in check_items("windows", windows, "each layer's window is needed")
        ]
        return self.replaced(path, self._of_layers("windows", given)) if any(given) else self


def _chosen(chosen: np.ndarray) -> list[list[bool]]:
    chosen = check_array("chosen", chosen)
    if chosen.ndim != 2 or chosen.dtype != np.bool_:
        raise ValueError(f"chosen heads are {chosen.dtype} {chosen.shape}; bool [L, N] is needed")
    return chosen.tolist()


def _check_shape(config: Shape) -> None:
    check_kind("config", config, Shape, "a model's config, such as model.config,")


def _count(kinds: Iterable[str], names: tuple[str, ...] = KINDS) -> dict[str, int]:
    kinds = list(kinds)
    return {name: kinds.count(name) for name in names}


def _name(layer: int, head: int) -> str:
    return f"layer {layer}, head {head}"


def _shape_problems(heads: tuple[tuple[Path, ...], ...]) -> Iterator[str]:
    if not heads or not heads[0]:
        yield "a mask needs at least one layer of at least one head"
        return
    if sum(map(len, heads)) > MOST_HEADS:
        yield TOO_MANY
        return
    for layer, paths in enumerate(heads):
        if len(paths) != len(heads[0]):
            yield f"layer {layer} has {len(paths)} heads and layer 0 has {len(heads[0])}"
        for head, path in enumerate(paths):
            if not isinstance(path, Path):
                yield (
                    f"{_name(layer, head)} is {path!r}, no path: use Full(), Copy(layer, head), "
                    "Window(sinks, recent) or Sink(fill)"
                )


def _copy_problems(heads: tuple[tuple[Path, ...], ...]) -> Iterator[str]:
    for layer, paths in enumerate(heads):
        for head, path in enumerate(paths):
            if not isinstance(path, Copy):
                continue
            copying = f"{_name(layer, head)} copies {_name(path.layer, path.head)}"
            if path.layer >= layer:
                yield f"{copying}: only heads of earlier layers can be copied"
            elif path.head >= len(paths):
                yield f"{copying}: heads are 0 to {len(paths) - 1}"
            elif not isinstance(source := heads[path.layer][path.head], Full | Window):
                yield f"{copying}, which is itself {source}: only `full` and `window` can be copied"
