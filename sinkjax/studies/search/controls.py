"""What a chosen mask is held against: others of its size, chosen in other ways."""

import numpy as np

from sinkjax.masks.choose import by_ranking, random_control
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Path
from sinkjax.studies.search.grow import SearchOutcome, SearchSettings
from sinkjax.studies.settings import seed_of_draw

CHOSEN = "chosen"
RANDOM = ("random, as chosen", "random, on the widest path")
CONTROLS = (*RANDOM, "sink score", "sink score, widest", "own error")


def control_masks(
    outcome: SearchOutcome, settings: SearchSettings, config, scores: np.ndarray, draws: int
) -> dict[str, SinkMask]:
    """What the chosen mask has to beat: others with as many masked heads, by their names.

    Args:
      scores: float [L, N], sink scores.
      draws: of each random control, whose names end in their numbers.
    """
    kv_heads = config.num_kv_heads if settings.by == "group" else None
    size = 1 if kv_heads is None else config.num_heads // kv_heads
    most = outcome.savings.max(axis=1)
    order = sorted(zip(-most, map(str, settings.paths), settings.paths, strict=True))
    counts = [path for layer in outcome.mask.heads for path in layer[::size]]
    taken = [path for *_, path in order for _ in range(counts.count(path))]
    # In a layer with a window of the model's own some paths leave out nothing, and mask no head.
    saves = outcome.savings > 0  # [P, L]
    by_cost = outcome.errors.mean(axis=(1, 2)).argsort(kind="stable")
    widest = [next((settings.paths[p] for p in by_cost if at[p]), Full()) for at in saves.T]
    # Of all paths a head's least costly one: what no path suits is last.
    least = -np.where(saves[..., None], outcome.errors, np.finfo(float).max).min(axis=0)

    def on_widest(mask: SinkMask) -> SinkMask:
        return mask.replaced(lambda path, wide: path if path == Full() else wide, widest)

    def by_score(scores: np.ndarray) -> SinkMask:
        def suited(path: Path, layer: int) -> Path:
            suits = path == Full() or saves[settings.paths.index(path), layer]
            return path if suits else widest[layer]

        mask = by_ranking(scores, taken, num_kv_heads=kv_heads)
        return mask.replaced(suited, range(mask.num_layers))

    drawn_from = outcome.mask, on_widest(outcome.mask)
    masks = {
        numbered(name, draw): random_control(
            mask, seed=seed_of_draw(settings.seed, draw), num_kv_heads=kv_heads
        )
        for name, mask in zip(RANDOM, drawn_from, strict=True)
        for draw in range(draws)
    }
    ranked = by_score(scores)
    others = ranked, on_widest(ranked), by_score(least)
    return masks | dict(zip(CONTROLS[len(RANDOM) :], others, strict=True))


def numbered(name: str, draw: int) -> str:
    """The name of a draw, from 0, of a random control."""
    return f"{name} {draw + 1}"
