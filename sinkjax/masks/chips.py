"""A layer's heads over several chips, each of which holds as many key/value groups as the others.

Chips wait for the one with most to do. Groups may lie on any chip, so a layer is even where groups
of equal make-up, those of `sink` heads alone apart, can be dealt out with none left over.
"""

import collections
import functools
from collections.abc import Sequence

from sinkjax.masks.paths import Full, Path, Sink, Window


def widened(
    paths: Sequence[Path], group: int, chips: int, costs: Sequence[float]
) -> tuple[Path, ...]:
    """Returns a layer's paths with the fewest and least costly ones widened such that it is even.

    Groups that are left over are set side by side, as many as there are chips and as like as they
    come, and each head takes the widest path of those beside it: time that its chip would wait.

    Args:
      paths: of the layer's heads; `full`, `window` and `sink`.
      group: G.
      chips: which divide the number of groups.
      costs: of masking each head; of heads on equal paths the costlier are widened.
    """
    even = list(paths)
    empty, left = _dealt(paths, group, chips)
    empty.sort(key=lambda k: -sum(costs[k * group : (k + 1) * group]))
    left += empty[: -len(left) % chips]
    orders = [
        sorted(range(k * group, (k + 1) * group), key=lambda n: (_width(paths[n]), costs[n], n))
        for k in left
    ]
    orders.sort(key=lambda order: [_width(paths[n]) for n in reversed(order)])
    for start in range(0, len(orders), chips):
        for beside in zip(*orders[start : start + chips], strict=True):
            widest = functools.reduce(_cover, (paths[n] for n in beside))
            for n in beside:
                even[n] = paths[n] if isinstance(widest, Sink) else widest
    return tuple(even)


def _dealt(paths: Sequence[Path], group: int, chips: int) -> tuple[list[int], list[int]]:
    """The groups of `sink` heads alone, and those that are left over when the others are dealt."""
    by_make_up = collections.defaultdict(list)
    for k in range(len(paths) // group):
        own = paths[k * group : (k + 1) * group]
        by_make_up[tuple(sorted(_width(p) for p in own if not isinstance(p, Sink)))].append(k)
    empty = by_make_up.pop((), [])
    return empty, [k for like in by_make_up.values() for k in like[: len(like) % chips]]


def _width(path: Path) -> tuple[int, int, int]:
    if isinstance(path, Window):
        return 1, path.sinks + path.recent, path.sinks
    return (2, 0, 0) if path == Full() else (0, 0, 0)


def _cover(path: Path, other: Path) -> Path:
    """The narrowest path that sees what both see."""
    if isinstance(path, Sink):
        return other
    if isinstance(path, Window) and isinstance(other, Window):
        return Window(max(path.sinks, other.sinks), max(path.recent, other.recent))
    return path if isinstance(other, Sink) else Full()
