"""What holds at every length of a sweep, and where things change most from one to the next."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from sinkjax.masks.scores import checked, is_sink
from sinkjax.studies.resampling import RESAMPLES, Resampled, Resamples, estimate
from sinkjax.studies.sweep.conditional import layer_0_lift

_DECIMALS = 12  # of steps between shares, which float64 carries


def summarize_lengths(
    lengths: Sequence[int],
    scores_by_length: Sequence[np.ndarray],
    prompt_keys: Sequence[Hashable],
    definition: str,
    threshold: float,
    seed: int,
    min_share: float,
) -> dict[str, Any]:
    """What holds at every length, and where the sinks' share and layer 0's lift change most.

    A step is a pair of neighbouring lengths. Its support is the share of resamples in which it is
    the one that changes most in absolute value (the first of equals); resamples in which nothing
    changes, or every step is undefined, support none.

    Args:
      lengths: T of each entry, in tokens, increasing.
      scores_by_length: float32 [P, L, N] each; P may differ.
      prompt_keys: equal keys are lengths of the same prompts in the same order, which are resampled
        together; lengths with different keys are resampled independently.
      threshold: an attention share, within (0, 1).
      min_share: a head holds at a length where it is a sink in at least this share of the prompts.

    Returns:
      the "result" of a record of kind "lengths", of plain Python values: `consistent`,
      `share_change` and `lift_change`. With one prompt at any length there is nothing to resample:
      its steps have no interval, and `support` is None.

    Raises:
      ValueError: for scores that are empty or not finite, or a threshold outside (0, 1).
    """
    scores_by_length = [checked(scores, "scores") for scores in scores_by_length]
    num_prompts = [len(scores) for scores in scores_by_length]
    sinks_by_length = [is_sink(scores, definition, threshold) for scores in scores_by_length]

    prompts_of = dict(zip(prompt_keys, num_prompts, strict=True))
    weights_of = {
        key: Resamples(prompts, seed, stream)
        for stream, (key, prompts) in enumerate(prompts_of.items())
    }
    shares, lifts = [], []
    for key, sinks in zip(prompt_keys, sinks_by_length, strict=True):
        per_prompt = sinks.sum(axis=(1, 2), dtype=np.float64)
        resampled = weights_of[key] @ per_prompt / sinks.size
        shares.append(Resampled(float(per_prompt.sum() / sinks.size), resampled))
        lifts.append(layer_0_lift(sinks, weights_of[key]))

    per_head = np.stack([sinks.mean(axis=0) for sinks in sinks_by_length])  # [lengths, L, N]
    least_so_far = np.minimum.accumulate(per_head, axis=0)
    return {
        "consistent": {
            "min_share": float(min_share),
            "heads": np.argwhere(least_so_far[-1] >= min_share).tolist(),
            "count_up_to": np.sum(least_so_far >= min_share, axis=(1, 2)).tolist(),
            "min_share_per_head": least_so_far[-1].tolist(),
        },
        "share_change": _change("the share of sinks", lengths, num_prompts, shares),
        "lift_change": _change("the lift of layer 0", lengths, num_prompts, lifts),
    }


def _change(
    name: str,
    lengths: Sequence[int],
    num_prompts: Sequence[int],
    series: Sequence[Resampled],
) -> dict[str, Any]:
    """The step between neighbouring lengths at which a quantity changes most.

    Args:
      name: of the quantity, for reasons.
      lengths: T of each entry.
      num_prompts: P of each entry.
      series: the quantity at each length; a step with an undefined side is left out.
    """
    if len(lengths) == 1:
        return {"undefined": f"one length only ({lengths[0]} tokens): there is no step"}
    # Rounded, so that steps which are equal in shares of whole heads are equal numbers.
    changes = np.diff([at_length.value for at_length in series]).round(_DECIMALS)
    resampled = np.stack([at_length.resampled for at_length in series], axis=1)
    resampled = np.diff(resampled, axis=1).round(_DECIMALS)
    defined = np.flatnonzero(~np.isnan(changes))
    if not defined.size:
        reasons = "; ".join(
            f"at {length} tokens {at_length.undefined}"
            for length, at_length in zip(lengths, series, strict=True)
            if at_length.undefined
        )
        return {"undefined": f"no two neighbouring lengths have {name}: {reasons}"}
    if not changes[defined].any():
        return {"undefined": f"{name} is the same at all of these lengths"}

    sizes = np.nan_to_num(np.abs(resampled[:, defined]), nan=0.0)
    largest = np.argmax(sizes, axis=1)[sizes.any(axis=1)]
    support = np.bincount(largest, minlength=defined.size) / RESAMPLES
    fewest = [min(num_prompts[index], num_prompts[index + 1]) for index in defined]
    steps = [
        {
            "from": int(lengths[index]),
            "to": int(lengths[index + 1]),
            "change": estimate(changes[index], resampled[:, index], prompts),
            "support": None if min(fewest) == 1 else float(share),
        }
        for index, prompts, share in zip(defined, fewest, support, strict=True)
    ]
    largest_step = steps[int(np.argmax(np.abs(changes[defined])))]
    doublings = math.log2(largest_step["to"] / largest_step["from"])
    return {
        **largest_step,
        "per_doubling": largest_step["change"]["value"] / doublings,
        "steps": steps,
    }
