"""From what was measured to masks: which heads leave `full`.

Every function takes scores or records and the path that the chosen heads are to take, and returns a
mask. With `num_kv_heads` whole key/value groups are chosen or left, for only those free the keys,
values and cache that they share. Nothing here is random but the control, which has a seed; equal
scores are broken by (layer, head), the first one first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.errors import InputError
from sinkjax.masks.mask import Copy, Full, Path, SinkMask, group_size
from sinkjax.masks.scores import checked, is_sink

_CONTROL = 2  # tells these draws from others of the same seed


def above_threshold(
    scores: np.ndarray,
    path: Path,
    *,
    threshold: float,
    definition: str = "mean",
    min_share: float = 0.9,
    num_kv_heads: int | None = None,
) -> SinkMask:
    """The heads that are sinks in at least a given share of the prompts.

    Args:
      scores: float [P, L, N] or, of one prompt or averaged over prompts, [L, N].
      path: of the chosen heads.
      threshold: an attention share, within (0, 1); sinks are strictly above it.
      definition: of the scores. Those of `log_odds` are held against the threshold's log-odds.
      min_share: of the prompts, within (0, 1].
      num_kv_heads: K, to choose the groups whose heads are all chosen; None for heads one by one.

    Raises:
      ValueError: for scores of another shape or not finite, a threshold outside (0, 1), a min_share
        outside (0, 1], or K that does not divide N. Also InputError of `SinkMask`.
    """
    return consistent(
        [scores],
        path,
        threshold=threshold,
        definition=definition,
        min_share=min_share,
        num_kv_heads=num_kv_heads,
    )


def consistent(
    scores_by_length: Sequence[np.ndarray],
    path: Path,
    *,
    threshold: float,
    definition: str = "mean",
    min_share: float = 0.9,
    num_kv_heads: int | None = None,
) -> SinkMask:
    """The heads that are sinks in at least a given share of the prompts at every length.

    Args:
      scores_by_length: one array a length, as for `above_threshold`; P may differ.
      path, threshold, definition, min_share, num_kv_heads: as for `above_threshold`.

    Raises:
      ValueError: as for `above_threshold`, or where there is no length or L or N differ. Also
        InputError of `SinkMask`.
    """
    by_length = [_with_prompts(scores) for scores in scores_by_length]
    if len({scores.shape[1:] for scores in by_length}) != 1:
        shapes = [scores.shape for scores in by_length]
        raise ValueError(f"scores have shapes {shapes}; one or more of equal L and N are needed")
    shares = [is_sink(scores, definition, threshold).mean(axis=0) for scores in by_length]
    return _held_by(np.min(shares, axis=0), path, min_share, num_kv_heads)


def consistent_in_record(
    record: Mapping[str, Any],
    path: Path,
    *,
    min_share: float | None = None,
    num_kv_heads: int | None = None,
) -> SinkMask:
    """The consistent heads of a sweep: what `consistent` gives for the scores behind the record.

    Args:
      record: of kind "lengths", as `sinkjax.studies.results.read_records` returns it.
      path: of the chosen heads.
      min_share: of the prompts, within (0, 1]; None for the sweep's own.
      num_kv_heads: K, to choose the groups whose heads are all chosen; None for heads one by one.

    Raises:
      InputError: for a record of another kind. Also of `SinkMask`.
      ValueError: for a min_share outside (0, 1] or K that does not divide N.
    """
    if record.get("kind") != "lengths":
        raise InputError(
            f"record {record.get('id')} is of kind {record.get('kind')!r}: consistent heads are in "
            "those of kind 'lengths', which a sweep over lengths makes"
        )
    found = record["result"]["consistent"]
    return _held_by(
        np.array(found["min_share_per_head"]),
        path,
        found["min_share"] if min_share is None else min_share,
        num_kv_heads,
    )


def consistent_in_cells(
    cells: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    min_share: float = 0.9,
    num_kv_heads: int | None = None,
) -> SinkMask:
    """The consistent heads of some lengths of a sweep, from their records.

    Args:
      cells: records of kind "cell", one a length, of one definition and threshold.
      path, min_share, num_kv_heads: as for `consistent`, whose mask this is.

    Raises:
      ValueError: for a min_share outside (0, 1] or K that does not divide N. Also InputError of
        `SinkMask`.
    """
    shares = [record["result"]["per_head"] for record in cells]
    return _held_by(np.min(shares, axis=0), path, min_share, num_kv_heads)


def above_quantile(
    scores: np.ndarray, path: Path, *, quantile: float, num_kv_heads: int | None = None
) -> SinkMask:
    """The share 1 - quantile of all heads, to the nearest whole number, that scores highest.

    Args:
      scores: float [P, L, N], of which the mean over prompts counts, or [L, N].
      path: of the chosen heads.
      quantile: within [0, 1]; 0.9 chooses a tenth of the heads.
      num_kv_heads: K, to choose that share of the groups, each by its lowest head: a group is no
        better to take out than its worst head; None for heads one by one.

    Raises:
      ValueError: for scores of another shape or not finite, a quantile outside [0, 1], or K that
        does not divide N. Also InputError of `SinkMask`.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; it has to lie between 0 and 1")
    scores = _with_prompts(scores)
    num_layers, num_heads = scores.shape[1:]
    size = 1 if num_kv_heads is None else group_size(num_heads, num_kv_heads)
    count = round((1 - quantile) * (num_layers * num_heads // size))
    return by_ranking(scores, [path] * count, num_kv_heads=num_kv_heads)


def by_ranking(
    scores: np.ndarray, paths: Sequence[Path], *, num_kv_heads: int | None = None
) -> SinkMask:
    """The heads of the highest scores, the i-th highest on the i-th path.

    Args:
      scores: float [P, L, N], of which the mean over prompts counts, or [L, N]. For heads' errors,
        their negatives.
      paths: at most as many as there are heads, or groups.
      num_kv_heads: K, to choose whole groups, each by its lowest head; None for heads one by one.

    Raises:
      ValueError: for scores of another shape or not finite, more paths than heads, or K that does
        not divide N. Also InputError of `SinkMask`.
    """
    means = _with_prompts(scores).mean(axis=0, dtype=np.float64)
    num_layers, num_heads = means.shape
    size = 1 if num_kv_heads is None else group_size(num_heads, num_kv_heads)
    of_groups = means.reshape(num_layers, -1, size).min(axis=-1)
    if len(paths) > of_groups.size:
        raise ValueError(f"{len(paths)} paths are given for {of_groups.size} heads or groups")
    ranking = np.argsort(-of_groups, axis=None, kind="stable")
    units: list[Path] = [Full()] * of_groups.size
    for unit, path in zip(ranking.tolist(), paths, strict=False):
        units[unit] = path
    heads = [path for path in units for _ in range(size)]
    return SinkMask(tuple(tuple(heads[n : n + num_heads]) for n in range(0, len(heads), num_heads)))


def random_control(mask: SinkMask, *, seed: int, num_kv_heads: int | None = None) -> SinkMask:
    """The same paths in every layer, each on a head drawn at random: what a choice has to beat.

    Counts per layer and kind stay. A copy follows the head that it copies to where that one went;
    for the control of `copy_first_layer`, draw the heads first and let those copy.

    Args:
      mask: to control for.
      seed: not negative; equal seeds draw equally.
      num_kv_heads: K, to move whole groups, their heads in order, so that as many groups lose their
        keys and values as in the mask; None to move heads one by one.

    Raises:
      ValueError: for K that does not divide N, or a negative seed.
    """
    rng = np.random.default_rng((_CONTROL, seed))
    size = 1 if num_kv_heads is None else group_size(mask.num_heads, num_kv_heads)
    heads = np.arange(mask.num_heads).reshape(-1, size)
    drawn = [rng.permutation(heads).ravel() for _ in mask.heads]  # drawn[l][new head] = old head
    went = np.argsort(drawn, axis=1)  # went[l][old head] = new head

    def moved(path: Path) -> Path:
        return Copy(path.layer, went[path.layer, path.head]) if isinstance(path, Copy) else path

    return SinkMask(
        tuple(
            tuple(moved(layer[head]) for head in order)
            for layer, order in zip(mask.heads, drawn, strict=True)
        )
    )


def _with_prompts(scores: np.ndarray) -> np.ndarray:
    """Scores [P, L, N] of [P, L, N] or [L, N], finite."""
    scores = np.asarray(scores)
    return checked(scores[None] if scores.ndim == 2 else scores, "scores")


def _held_by(
    share_of_prompts: np.ndarray, path: Path, min_share: float, num_kv_heads: int | None
) -> SinkMask:
    """The heads with at least this share, [L, N]; with K, of groups that have it in every head."""
    if not 0 < min_share <= 1:
        raise ValueError(f"min_share is {min_share}; it has to be above 0 and at most 1")
    chosen = share_of_prompts >= min_share
    if num_kv_heads is not None:
        size = group_size(chosen.shape[1], num_kv_heads)
        groups = chosen.reshape(len(chosen), num_kv_heads, size).all(axis=-1)
        chosen = np.repeat(groups, size, axis=1)
    return SinkMask.where(chosen, path)
