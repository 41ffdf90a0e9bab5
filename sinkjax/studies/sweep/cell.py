"""One cell of a sweep: what the scores of many prompts at one length say."""

from typing import Any

import numpy as np

from sinkjax.masks.scores import checked, is_sink
from sinkjax.studies.resampling import Resamples, estimate
from sinkjax.studies.sweep.conditional import RENUMBERED, conditionals, later_layers

_DECIMALS = 6  # of averaged float32 measurements, which carry no more


def summarize_cell(
    scores: np.ndarray,
    output_norm: np.ndarray,
    definition: str,
    threshold: float,
    seed: int,
    num_kv_heads: int,
) -> dict[str, Any]:
    """The result of one cell of a sweep: one length, definition and threshold over P prompts.

    Args:
      scores: float32 [P, L, N].
      output_norm: float32 [P, L, N], the heads' output norms relative to their layer.
      threshold: an attention share, within (0, 1).
      num_kv_heads: K, of N / K heads each: the control of the conditionals keeps these together.

    Returns:
      the "result" of a record of kind "cell", of plain Python values: `sinks` (count a prompt and
      share of L·N), `per_layer` [L], `per_head` [L][N], `mean_score` [L][N], `output_norm` [L][N],
      `conditional` (one for each source layer before the last), `best_source`, `later_layers`
      (layer 0's conditional on each alone) and what their control has `renumbered`.

    Raises:
      ValueError: for values that are empty or not finite, or a threshold outside (0, 1).
    """
    scores, output_norm = checked(scores, "scores"), checked(output_norm, "output_norm")
    sinks = is_sink(scores, definition, threshold)
    num_prompts, num_layers, num_heads = sinks.shape
    weights = Resamples(num_prompts, seed)
    per_prompt = sinks.sum(axis=(1, 2), dtype=np.float64)
    count, counts = per_prompt.mean(), weights @ per_prompt / num_prompts
    heads_in_all = num_layers * num_heads
    conditional, best = conditionals(sinks, weights, seed, num_kv_heads)
    return {
        "sinks": {
            "count": estimate(count, counts, num_prompts),
            "share": estimate(count / heads_in_all, counts / heads_in_all, num_prompts),
        },
        "per_layer": sinks.mean(axis=(0, 2)).tolist(),
        "per_head": sinks.mean(axis=0).tolist(),
        "mean_score": scores.mean(axis=0, dtype=np.float64).round(_DECIMALS).tolist(),
        "output_norm": output_norm.mean(axis=0, dtype=np.float64).round(_DECIMALS).tolist(),
        "conditional": conditional,
        "best_source": best,
        "later_layers": later_layers(sinks, weights, seed, num_kv_heads),
        "renumbered": RENUMBERED,
    }
