"""The order of a layer's heads for dense work: static, worked out from the mask alone.

A head is computed (`full`, `window`), copied (`copy`) or gone (`sink`). Groups whose heads take the
same paths form a block: in it every path has the same number of heads in each group, so that each
of its products is dense and reads the block's own keys and values as they lie. Groups whose heads
are all `sink` are in no block.

  layer   blocks, in the order of their first group
  block   groups of equal make-up; one store of keys and one of values in the cache
  part    the heads of one path in a block, by group; of those that later layers copy, one apart

Heads lie in the order of parts, wherever they are an axis: q has the computed parts, o all parts,
k the blocks that need keys, v all blocks. Over several chips the groups of every block are dealt
out alike, and heads lie by chip first: then as on one chip that has its groups alone, so that what
is a slice of an axis there is one on every chip. A layer whose groups cannot be dealt out lies as
on one chip; chips then divide its rows, if anything, and so they do along `sub` where that would
cut through a part. Layers of which one copies another are divided alike.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from sinkjax.attention.context import PartName
from sinkjax.attention.copy import CopiedHead
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Path, Sink, Window
from sinkjax.models.rules import AS_DIVIDED, BY_CHIP, BY_SUB


@dataclasses.dataclass(frozen=True)
class Computed:
    """Heads that attend by their own queries and keys.

    Attributes:
      heads: their number in each group.
      name: of their pattern, for later layers; None where no head of them is copied.
    """

    path: Full | Window
    heads: int
    name: PartName | None

    @property
    def kind(self) -> str:
        """The kind of path that they are on."""
        return self.path.kind


@dataclasses.dataclass(frozen=True)
class Copied:
    """Heads that attend as earlier heads do.

    Attributes:
      path: of the earlier heads.
      heads: their number in each group.
      sources: the earlier head of each, group by group.
    """

    path: Full | Window
    heads: int
    sources: tuple[CopiedHead, ...]
    kind: ClassVar[str] = Copy.kind


@dataclasses.dataclass(frozen=True)
class Block:
    """Groups of equal make-up: their number, and their parts."""

    groups: int
    computed: tuple[Computed, ...]
    copied: tuple[Copied, ...]

    @property
    def parts(self) -> tuple[Computed | Copied, ...]:
        """All parts, in the order in which their heads lie."""
        return *self.computed, *self.copied

    @property
    def keys(self) -> Full | Window | None:
        """The span of the past that a store of keys has to hold; None for no keys."""
        return _span(part.path for part in self.computed) if self.computed else None

    @property
    def values(self) -> Full | Window:
        """The span of the past that a store of values has to hold."""
        return _span(part.path for part in self.parts)


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """A layer: its blocks, and the groups that have `sink` heads.

    Attributes:
      blocks: all groups with other than `sink` heads.
      first, other: groups with heads that are `sink(first)`, and `sink` with another fill: places
        in the order of blocks, those with only `sink` heads last.
      idle: heads, and groups, whose queries and keys a norm over all heads alone reads.
      chips: over which heads lie.
      batch: the logical axis of rows (`sinkjax.models.rules`).
    """

    blocks: tuple[Block, ...]
    first: tuple[int, ...]
    other: tuple[int, ...]
    idle: tuple[int, int] = (0, 0)
    chips: int = 1
    batch: str = AS_DIVIDED

    @property
    def places(self) -> np.ndarray:
        """Returns the place in o of each of its heads, in the order that they have on one chip."""
        sizes = [block.groups * part.heads for block in self.blocks for part in block.parts]
        by_chip = np.arange(sum(sizes)).reshape(self.chips, -1)
        of_parts = np.split(by_chip, np.cumsum(sizes)[:-1] // self.chips, axis=1)
        return np.concatenate([places.ravel() for places in of_parts])


@dataclasses.dataclass(frozen=True)
class HeadOrder:
    """The heads of the original in the order of a plan, by which weights are sliced.

    Attributes:
      q, o: query heads. k, v: groups. sink_v: groups with only `sink` heads. In q and k the idle
        ones are the last.
      first, other: the query heads whose o is summed, a tuple for each of the plan's groups.
      mean: the query heads that are `sink(mean)`.
    """

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    o: tuple[int, ...]
    sink_v: tuple[int, ...]
    first: tuple[tuple[int, ...], ...]
    other: tuple[tuple[int, ...], ...]
    mean: tuple[int, ...]


def plan_layers(
    mask: SinkMask,
    group: int,
    windows: Sequence[int | None] = (),
    joint_qk_norm: bool = False,
    chips: int = 1,
    sub: int = 1,
) -> list[tuple[LayerPlan, HeadOrder] | None]:
    """Every layer's plan; None for a layer that is all `full` and of which nothing is copied.

    `group` is G, the query heads of a group; `windows` and `joint_qk_norm` are of
    `sinkjax.LlamaConfig`; `chips` are those over which key/value heads are divided, `sub` those
    over which query heads are beside.
    """
    all_full = [all(path == Full() for path in paths) for paths in mask.heads]
    mask = mask.within(windows)
    copied = {(p.layer, p.head) for paths in mask.heads for p in paths if isinstance(p, Copy)}

    def planned(chips_of: Sequence[int]) -> list[tuple[LayerPlan, HeadOrder] | None]:
        sources: dict[tuple[int, int], CopiedHead] = {}
        plans = []
        for layer, is_full in enumerate(all_full):
            kept = frozenset(head for source, head in copied if source == layer)
            of_layer = group, kept, sources, joint_qk_norm, chips_of[layer]
            is_planned = kept or not is_full
            plans.append(_plan_layer(layer, mask, *of_layer) if is_planned else None)
        return plans

    plans = planned([chips] * len(all_full))
    if chips == sub == 1:
        return plans
    batches = _batches([planned and planned[0] for planned in plans], chips, sub)
    plans = planned([1 if batch == BY_CHIP else chips for batch in batches])
    return [
        planned and (dataclasses.replace(planned[0], batch=batch), planned[1])
        for planned, batch in zip(plans, batches, strict=True)
    ]


_BATCHES = (AS_DIVIDED, BY_SUB, BY_CHIP)  # from the most that is divided by heads to the least


def _batches(plans: Sequence[LayerPlan | None], chips: int, sub: int) -> list[str]:
    """The axis of each layer's rows, of plans over all chips."""
    sizes = {
        part.name: block.groups * part.heads
        for plan in plans
        if plan is not None
        for block in plan.blocks
        for part in block.computed
    }
    by_rows = [0 if plan is None else _by_rows(plan, chips, sub) for plan in plans]
    together: list[list[int]] = []
    for layer, plan in enumerate(plans):
        parts = [part for block in plan.blocks for part in block.copied] if plan else []
        for part in parts:
            sources = {name[0] for name, _ in part.sources}
            together.append([layer, *sources])
            name = part.sources[0][0]
            if list(part.sources) != [(name, place) for place in range(sizes[name])]:
                by_rows[layer] = 2 if chips > 1 else 1
    for _ in together:  # at most so often does one layer lead to the next
        for layers in together:
            most = max(by_rows[layer] for layer in layers)
            for layer in layers:
                by_rows[layer] = most
    return [_BATCHES[by] for by in by_rows]


def _by_rows(plan: LayerPlan, chips: int, sub: int) -> int:
    """The place in `_BATCHES` of a layer by itself."""
    if plan.chips != chips:
        return 2
    parts = [(block, part) for block in plan.blocks for part in block.parts]
    if sub == 1 or not parts:
        return 0
    block, part = parts[0]
    own = block.groups // chips
    is_divided = own % sub == 0 or (own == 1 and part.heads % sub == 0)
    return 0 if len(parts) == 1 and is_divided and not any(plan.idle) else 1


def _plan_layer(
    layer: int,
    mask: SinkMask,
    group: int,
    kept: frozenset[int],
    sources: dict[tuple[int, int], CopiedHead],
    joint_qk_norm: bool,
    chips: int,
) -> tuple[LayerPlan, HeadOrder]:
    """One layer's plan; adds its kept heads to `sources`, which has those of earlier layers."""
    paths = mask.heads[layer]
    groups = range(len(paths) // group)
    by_part = [_parts(mask, layer, range(k * group, (k + 1) * group), kept) for k in groups]
    by_make_up = collections.defaultdict(list)
    for k, parts in enumerate(by_part):
        by_make_up[tuple((key, len(heads)) for key, heads in parts.items())].append(k)
    sink_v = tuple(by_make_up.pop((), ()))
    uneven = any(len(members) % chips for members in by_make_up.values())
    # Idle heads lie behind all others, so that no chip's share would be like another's.
    idle = joint_qk_norm and any(isinstance(path, Sink | Copy) for path in paths)
    if uneven or idle:
        chips = 1

    blocks = []
    q, k_order, v, o = ([[] for _ in range(chips)] for _ in range(4))
    for number, (make_up, members) in enumerate(by_make_up.items()):
        computed, copied = [], []
        dealt = np.reshape(members, (chips, -1)).tolist()
        for key, count in make_up:
            by_chip = [[head for k in own for head in by_part[k][key]] for own in dealt]
            heads = list(itertools.chain(*by_chip))
            _extend(o, by_chip)
            if key.is_copied:
                of_part = tuple(sources[paths[n].layer, paths[n].head] for n in heads)
                copied.append(Copied(key.path, count, of_part))
                continue
            _extend(q, by_chip)
            name = (layer, number, len(computed)) if key.is_kept else None
            computed.append(Computed(key.path, count, name))
            if name is not None:
                sources.update({(layer, n): (name, place) for place, n in enumerate(heads)})
        blocks.append(Block(len(members), tuple(computed), tuple(copied)))
        _extend(v, dealt)
        if computed:
            _extend(k_order, dealt)

    by_block = itertools.chain(*by_make_up.values())
    places = {k: place for place, k in enumerate((*by_block, *sink_v))}
    sinks = [n for n, path in enumerate(paths) if isinstance(path, Sink)]
    first = _by_place([n for n in sinks if paths[n].fill == "first"], group, places)
    other = _by_place([n for n in sinks if paths[n].fill != "first"], group, places)
    mean = tuple(n for n in sinks if paths[n].fill == "mean")
    q, k_order, v, o = (tuple(itertools.chain(*by_chip)) for by_chip in (q, k_order, v, o))
    idle_q = idle_k = ()
    if joint_qk_norm and q:
        idle_q, idle_k = sorted({*range(len(paths))} - {*q}), sorted({*groups} - {*k_order})
    plan = LayerPlan(tuple(blocks), tuple(first), tuple(other), (len(idle_q), len(idle_k)), chips)
    return plan, HeadOrder(
        q=(*q, *idle_q),
        k=(*k_order, *idle_k),
        v=v,
        o=o,
        sink_v=sink_v,
        first=tuple(first.values()),
        other=tuple(other.values()),
        mean=mean,
    )


def _extend(orders: list[list[int]], by_chip: Iterable[list[int]]) -> None:
    for order, own in zip(orders, by_chip, strict=True):
        order += own


@dataclasses.dataclass(frozen=True)
class _PartKey:
    """The properties that the heads of one part share."""

    is_copied: bool
    is_kept: bool
    path: Full | Window

    @property
    def rank(self) -> tuple:
        """Computed before copied, `full` before windows."""
        window = (self.path.sinks, self.path.recent) if isinstance(self.path, Window) else ()
        return self.is_copied, window, self.is_kept


def _parts(
    mask: SinkMask, layer: int, heads: Iterable[int], kept: frozenset[int]
) -> dict[_PartKey, list[int]]:
    """The heads of one group by part, in the order of parts; without its `sink` heads."""
    parts = collections.defaultdict(list)
    for head in heads:
        path: Path = mask.heads[layer][head]
        if isinstance(path, Sink):
            continue
        is_copied = isinstance(path, Copy)
        if is_copied:
            path = mask.heads[path.layer][path.head]
        parts[_PartKey(is_copied, head in kept, path)].append(head)
    return dict(sorted(parts.items(), key=lambda item: item[0].rank))


def _by_place(
    heads: Iterable[int], group: int, places: Mapping[int, int]
) -> dict[int, tuple[int, ...]]:
    """Query heads by their group's place in the order of v, ascending."""
    by_place = collections.defaultdict(tuple)
    for head in heads:
        by_place[places[head // group]] += (head,)
    return dict(sorted(by_place.items()))


def _span(paths: Iterable[Full | Window]) -> Full | Window:
    """The span that heads on all these paths see between them."""
    spans = set(paths)
    if Full() in spans:
        return Full()
    # First tokens have to stay as long as any head sees them.
    within = {span.within for span in spans if span.sinks}
    return Window(
        max(span.sinks for span in spans),
        max(span.recent for span in spans),
        None if None in within else max(within, default=None),
    )
