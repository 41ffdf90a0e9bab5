"""What a chosen mask is held against: others of its size, chosen in other ways."""

import numpy as np

from sinkjax.masks.choose import by_ranking, random_control
from sinkjax.masks.mask import SinkMask
from sinkjax.studies.search.grow import SearchOutcome, SearchSettings

CHOSEN = "chosen"
RANDOM = ("random, as chosen", "random, on the widest path")
CONTROLS = (*RANDOM, "sink score", "sink score, widest", "own error")


def control_masks(
    outcome: SearchOutcome, settings: SearchSettings, config, scores: np.ndarray, draws: int
) -> dict[str, SinkMask]:
    """What the chosen mask has to beat: others with as many masked heads, by their names.

    Args:
      outcome, settings: of the search.
      config: of the model.
      scores: float [L, N], sink scores.
      draws: of each random control, whose names end in their numbers.
    """
    kv_heads = config.num_kv_heads if settings.by == "group" else None
    size = 1 if kv_heads is None else config.num_heads // kv_heads
    order = sorted(zip(-outcome.savings, map(str, settings.paths), settings.paths, strict=True))
    counts = [path for layer in outcome.mask.heads for path in layer[::size]]
    taken = [path for *_, path in order for _ in range(counts.count(path))]
    widest = settings.paths[int(outcome.errors.mean(axis=(1, 2)).argmin())]
    # Of all paths a head's least costly one: what no path suits is last.
    least = -outcome.errors.min(axis=0)
    drawn_from = outcome.mask, SinkMask.where(outcome.mask.masked, widest)
    masks = {
        numbered(name, draw): random_control(mask, seed=settings.seed + draw, num_kv_heads=kv_heads)
        for name, mask in zip(RANDOM, drawn_from, strict=True)
        for draw in range(draws)
    }
    others = (
        by_ranking(scores, taken, num_kv_heads=kv_heads),
        by_ranking(scores, [widest] * len(taken), num_kv_heads=kv_heads),
        by_ranking(least, taken, num_kv_heads=kv_heads),
    )
    return masks | dict(zip(CONTROLS[len(RANDOM) :], others, strict=True))


def numbered(name: str, draw: int) -> str:
    """The name of a draw, from 0, of a random control."""
    return f"{name} {draw + 1}"
