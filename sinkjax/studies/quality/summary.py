"""Excerpts to values with intervals: what quality says in records and in mask files. Pure numpy.

Excerpts are what was drawn, so intervals are over excerpts (`sinkjax.studies.resampling`); both
models saw the same ones, so a change between them is resampled as a change.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sinkjax.instruments.compare import QualityStats
from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.masks.mask import SinkMask
from sinkjax.studies.costs import parts_up_to, summarize_parts
from sinkjax.studies.resampling import (
    estimate_change,
    estimate_excerpts,
    estimate_kl,
    estimate_mean,
    resample_counts,
)


def summarize_quality(stats: QualityStats, mask: SinkMask, *, seed: int) -> dict[str, Any]:
    """What a comparison says over all its excerpts.

    Args:
      stats: W excerpts of P scored positions, the last one that of the prompt's last token.
      mask: what they were read under, without windows that hide nothing (`SinkMask.hiding`).

    Returns:
      the "result" of a record of kind "quality", of plain Python values; KL and NLL in nats a
      token, each an estimate with its interval unless said otherwise:
      `tokens` (W·P, a number), `heads` (`SinkMask.counts`), `kl` (`mean`, `p95`, `p99`, and `max`,
      a number), those of `sinkjax.studies.costs`, `shorter` (by the text of each length of
      `lengths_up_to` but the excerpts' own, what the same mask costs on their first tokens: means,
      numbers), `kl_by_position` (for spans of positions that double in size, `first`, `last` and
      the mean `kl`), `nll` (`baseline`, `candidate` and `change`, their difference), `perplexity`
      (`baseline`, `candidate` and `change`, relative: 0.01 is one percent more) and `agreement`
      (`top1`, `top5`).
    """
    weights = resample_counts(len(stats.kl), seed)
    first, prompt = int(stats.positions[0]), int(stats.positions[-1]) + 1
    kl = np.concatenate([stats.kl, stats.generated_kl.reshape(len(stats.kl), -1)], axis=1)
    at_lengths = parts_up_to(kl, mask, prompt) if first == SCORE_FROM else {}
    mean = lambda values: estimate_mean(values, weights)  # noqa: E731
    return {
        "tokens": stats.kl.size,
        "heads": mask.counts(),
        "kl": {
            "mean": estimate_kl(stats.kl),
            **{f"p{p}": _estimate_percentile(stats.kl, p, weights) for p in (95, 99)},
            "max": float(stats.kl.max()),
        },
        **summarize_parts(kl, mask, prompt, first),
        "shorter": {str(n): parts for n, parts in at_lengths.items() if n != prompt},
        "kl_by_position": [
            {
                "first": int(stats.positions[span.start]),
                "last": int(stats.positions[span.stop - 1]),
                "kl": estimate_kl(stats.kl[:, span]),
            }
            for span in _spans(stats.positions)
        ],
        **_likelihoods(stats, weights),
        "agreement": {"top1": mean(stats.top1), "top5": mean(stats.top5)},
    }


def summarize_continuation(agreeing: np.ndarray, num_tokens: int, *, seed: int) -> dict[str, Any]:
    """How long greedy continuations stay the same.

    Args:
      agreeing: int [W], tokens before the first difference; `num_tokens` where there is none.

    Returns:
      the "result" of a record of kind "continuation": estimates of `agreeing`, the mean over
      excerpts with `num_tokens` where there is no difference, and of `identical`, the share of
      excerpts without one; `per_window`, as given.
    """
    weights = resample_counts(len(agreeing), seed)
    return {
        "agreeing": estimate_mean(agreeing, weights),
        "identical": estimate_mean(agreeing == num_tokens, weights),
        "per_window": agreeing.tolist(),
    }


def measured_quality(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What records of kind "quality" say of one mask, for the "quality" of its file.

    Returns:
      each result with the text, the BOS policy and the length that it is of, and its record's id.
    """
    kept = ("length", "num_windows", "bos", "score_from", "generated", "seed")
    return [
        {
            "text": record["source"]["name"],
            "text_sha256": record["source"]["sha256"],
            **{name: record[name] for name in kept if name in record},
            **record["result"],
            "model_digest": record["model"]["model_digest"],
            "record": record["id"],
        }
        for record in records
    ]


def _likelihoods(stats: QualityStats, weights: np.ndarray) -> dict[str, Any]:
    """`nll` and `perplexity`."""
    if not stats.baseline_nll.size:
        reason = "no scored position has a next token in its window"
        nothing = {"value": None, "undefined": reason}
        names = ("baseline", "candidate", "change")
        return {measure: dict.fromkeys(names, nothing) for measure in ("nll", "perplexity")}
    baseline = stats.baseline_nll.mean(axis=1, dtype=np.float64)
    candidate = stats.candidate_nll.mean(axis=1, dtype=np.float64)
    change = candidate - baseline
    return {
        "nll": estimate_change(baseline, candidate, weights),
        "perplexity": {
            "baseline": estimate_mean(baseline, weights, np.exp),
            "candidate": estimate_mean(candidate, weights, np.exp),
            "change": estimate_mean(change, weights, np.expm1),
        },
    }


def _estimate_percentile(values: np.ndarray, percent: int, weights: np.ndarray) -> dict[str, Any]:
    """The least value that `percent` of the tokens of all excerpts [W, P] do not exceed."""
    count, size = values.shape
    order = np.argsort(values, axis=None, kind="stable")
    ascending, excerpt = values.ravel()[order], order // size
    rank = math.ceil(values.size * percent / 100)
    # Every resample has W excerpts, so the rank is the same; how often each token counts is not.
    resampled = [ascending[np.searchsorted(np.cumsum(counts[excerpt]), rank)] for counts in weights]
    return estimate_excerpts(float(ascending[rank - 1]), np.asarray(resampled, np.float64), count)


def _spans(positions: np.ndarray) -> list[slice]:
    """Columns of the positions 0, 1, 2 to 3, 4 to 7 and so on, as far as they are scored."""
    edges = [0, *(1 << power for power in range(int(positions[-1]).bit_length() + 1))]
    ends = np.searchsorted(positions, edges)
    pairs = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    return [slice(start, end) for start, end in pairs if start < end]
