"""Growing a mask to a budget of KL: which moves to make, and how far to go. Pure numpy.

A unit is a head, or a whole key/value group: `size` heads. A move takes a unit to a path that saves
more, of P paths that are not `full`. Moves are made greedily by predicted cost a saving, each
predicted beside those already made; how many of them fit the budget is measured, not predicted.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from sinkjax.instruments.sensitivity import Prediction
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Path

_ROUNDING = 1e-5  # of the largest change, below which one is float32's rounding


@dataclasses.dataclass(frozen=True)
class Move:
    """One unit to one path.

    Attributes:
      layer, unit: whose; the unit is a head or a group.
      path: that it takes.
      cost, saving: more than before the move, beside those made before it.
    """

    layer: int
    unit: int
    path: Path
    cost: float
    saving: float


@dataclasses.dataclass(frozen=True)
class Step:
    """How far moves went.

    Attributes:
      tried: measured KL by the number of moves, in the order of measuring.
      mask, kl: the mask with the most moves that fit, and its measured KL.
      number: of moves in it.
      scale: measured KL a predicted one; None where nothing was measured above 0.
      returned: units, (layer, unit), that were given back after the moves, for answers' sake; the
        mask and its KL are those without them.
    """

    tried: tuple[tuple[int, float], ...]
    mask: SinkMask
    kl: float
    number: int
    scale: float | None
    returned: frozenset[tuple[int, int]] = frozenset()


def rank_moves(
    start: SinkMask,
    paths: Sequence[Path],
    predicted: Prediction,
    savings: np.ndarray,
    *,
    size: int = 1,
    within: SinkMask | None = None,
) -> list[Move]:
    """Moves in the greedy order: the next one costs least a saving beside those before it.

    Args:
      start: that moves are made from; also another mask than the predictions are of. The heads of
        a unit are on one path.
      predicted: costs of single heads.
      savings: float [P, L], of a unit on each path in each layer, or [P, 1] where layers are alike;
        a path of none is not taken there.
      within: whose path alone each unit may take, in the order of `start`; None for any path.

    Returns:
      all moves there are, until every unit is on the path that saves most; equal ones by (layer,
      unit).
    """
    options = [Full(), *paths]
    num_layers, units = start.num_layers, start.num_heads // size
    shape = (len(options), num_layers * units, size)
    saved = np.broadcast_to(savings, (len(paths), num_layers)).repeat(units, axis=1)
    saved = np.concatenate([np.zeros_like(saved[:1]), saved])  # [1 + P, U]
    linear = predicted.linear.reshape(shape).sum(axis=-1)  # [1 + P, U]
    products = predicted.products.reshape(-1, *shape).sum(axis=-1)  # [draws, 1 + P, U]
    at = _options(start, options, size)
    every = np.arange(at.size)
    allowed = np.ones(saved.shape, bool)
    if within is not None:
        allowed = np.arange(len(options))[:, None] == _options(within, options, size)
    shrunk = shrinkage(products[:, 1:].reshape(len(products), saved[1:].size))
    here = _options(predicted.mask, options, size)
    # The sum over units of where they are, against the mask that was predicted for.
    together = (products[:, at, every] - products[:, here, every]).sum(axis=1)
    own = _mean(np.square(products - products[:, here, every][:, None]))  # [1 + P, U]
    moves = []
    while True:
        change = products - products[:, at, every][:, None]
        joint = _mean(np.square(change) + 2 * together[:, None, None] * change)
        cost = linear - linear[at, every]
        cost = cost + ((1 - shrunk) * joint + shrunk * (own - own[at, every])) / 2
        saving = np.where(allowed, saved - saved[at, every], 0)
        slope = np.where(saving > 0, cost / np.where(saving > 0, saving, 1), np.inf)
        unit = int(slope.min(axis=0).argmin())
        option = int(slope[:, unit].argmin())
        if not np.isfinite(slope[option, unit]):
            return moves
        moves.append(
            Move(
                *divmod(unit, units),
                options[option],
                float(cost[option, unit]),
                float(saving[option, unit]),
            )
        )
        together = together + change[:, option, unit]
        at[unit] = option


def rank_returns(
    mask: SinkMask,
    paths: Sequence[Path],
    predicted: Prediction,
    *,
    size: int = 1,
    whole: Sequence[Path] = (Full(),),
) -> list[Move]:
    """Moves of masked units back, each alone: that which lowers the cost most is first.

    Args:
      predicted: costs under the mask.
      whole: `full`, and paths that are as good where costs are predicted; units go back to the
        first of them, and those that are on any stay.
    """
    shape = (len(predicted.linear), mask.num_layers * mask.num_heads // size, size)
    linear = predicted.linear.reshape(shape).sum(axis=-1)  # [1 + P, U]
    products = predicted.products.reshape(-1, *shape).sum(axis=-1)  # [draws, 1 + P, U]
    at, every = _options(mask, [Full(), *paths], size), np.arange(shape[1])
    cost = linear[0] - linear[at, every]
    cost = cost + _mean(np.square(products[:, 0] - products[:, at, every])) / 2
    units, stay = mask.num_heads // size, [[Full(), *paths].index(path) for path in whole]
    return [
        Move(*divmod(int(unit), units), whole[0], float(cost[unit]), 0.0)
        for unit in np.argsort(cost, kind="stable")
        if at[unit] not in stay
    ]


def shrinkage(draws: np.ndarray) -> float:
    """λ: how far sample correlations of few draws are to be moved towards none.

    Σ Var(r_ij) / Σ r_ij² over pairs, the estimate of least expected square error (Schäfer and
    Strimmer 2005), with products about 0 and not about their means. Variables that rounding alone
    moves, as of heads that stay on their path, are none: their correlations are as large as any.

    Args:
      draws: float64 [draws, variables].

    Returns:
      within [0, 1]; 1 of fewer than two draws.
    """
    count = len(draws)
    if count < 2:
        return 1.0
    size = np.sqrt(np.square(draws).mean(axis=0))
    moves = size > _ROUNDING * size.max(initial=0)
    unit = draws[:, moves] / size[moves]
    r = unit.T @ unit / count
    squares = np.square(unit).T @ np.square(unit) / count
    variance = (squares - np.square(r)) / (count - 1)
    off = ~np.eye(len(r), dtype=bool)
    total = np.square(r[off]).sum()
    return float(np.clip(variance[off].sum() / total, 0, 1)) if total > 0 else 1.0


def make_moves(mask: SinkMask, moves: Sequence[Move], *, size: int = 1) -> SinkMask:
    """The mask after these moves, in order, of units of `size` heads."""
    heads = [list(layer) for layer in mask.heads]
    for move in moves:
        start = move.unit * size
        heads[move.layer][start : start + size] = [move.path] * size
    return SinkMask(tuple(map(tuple, heads)))


def spend(
    start: SinkMask,
    moves: Sequence[Move],
    target: float,
    measure: Callable[[SinkMask], float],
    *,
    kl: float,
    scale: float | None = None,
    size: int = 1,
    tries: int = 6,
    close: float = 0.95,
    whole: bool = False,
) -> Step:
    """Makes as many of the moves, from the first on, as the measured KL allows.

    Their number is bisected; the next one to measure is where the KL would reach the target if it
    grew with the predicted cost as it did so far, where that lies well inside the bracket.

    Args:
      start: that moves are made from.
      moves: best first.
      target: the most KL.
      measure: the KL of a mask.
      kl: of `start`, at most the target.
      scale: measured KL a predicted one, from earlier; None for none.
      tries: measurements, at most.
      close: the share of the target that is near enough.
      whole: whether all moves are measured first, since they are expected to fit.
    """
    cumulative = np.concatenate([[0.0], np.cumsum([move.cost for move in moves])])
    cumulative = np.maximum.accumulate(cumulative)
    fits, too_many = 0, len(moves) + 1  # numbers of moves known to fit, and known not to
    best, best_kl, tried = start, kl, []
    failed = False
    while len(tried) < tries and too_many - fits > 1 and best_kl < close * target:
        number = _next(cumulative, fits, too_many, best_kl, target, scale)
        if whole and not tried:
            number = len(moves)
        if failed:  # predictions that were wrong there may be wrong again
            number = min(number, (fits + too_many) // 2)
        candidate = make_moves(start, moves[:number], size=size)
        measured = measure(candidate)
        tried.append((number, measured))
        if cumulative[number] > 0 and measured > kl:
            scale = (measured - kl) / float(cumulative[number])
        failed = measured > target
        if failed:
            too_many = number
        else:
            fits, best, best_kl = number, candidate, measured
    return Step(tuple(tried), best, best_kl, fits, scale)


def _next(
    cumulative: np.ndarray, fits: int, too_many: int, kl: float, target: float, scale: float | None
) -> int:
    """The number of moves to measure next, between two known ones, both excluded."""
    middle = (fits + too_many) // 2
    if scale is None:
        return middle
    aim = cumulative[fits] + (0.97 * target - kl) / scale
    number = int(np.searchsorted(cumulative, aim, side="right")) - 1
    # A guess near an end may leave the bracket as it is, again and again.
    margin = max(1, (too_many - fits) // 8)
    return min(max(number, fits + margin), too_many - margin)


def _options(mask: SinkMask, options: Sequence[Path], size: int) -> np.ndarray:
    """Which option each unit is on: int [U]."""
    return np.array([options.index(path) for layer in mask.heads for path in layer[::size]])


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over draws; 0 of none."""
    return values.mean(axis=0) if len(values) else np.zeros(values.shape[1:])
