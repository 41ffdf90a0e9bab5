"""P(head of a later layer is a sink | the head of the same index in a source layer is).

The pairs are pooled over prompts, heads and all layers after the source layer, as the founding
study pooled them over heads and layers after layer 0.

The control for "the same head index" renumbers the heads of the source layer, with one permutation
for all prompts. A head that is a sink in one prompt tends to be one in others, so it is heads and
not (prompt, head) pairs that are exchangeable: a fresh permutation for every prompt would average
chance agreements away and call them significant. Nor are all heads of a layer: those that share a
key/value head are alike, so that two layers may well have most of their sinks in the same group by
chance. Hence whole groups change places, and heads within each, and no group is torn apart. With
one group, or with a group for each head, that is any permutation of the heads. The control answers:
had the source layer's groups and their heads been numbered otherwise, each layer keeping its sinks,
how large would the conditional be?

The true numbering is one of these, so that a lift lies above the interval of the control only where
no more than 2.5% of the renumberings give as much. Fewer than 40 renumberings leave no room there
(4 heads have 24), and fewer than 40 orders of the groups (up to 4 groups) none for a link of whole
groups, which every renumbering that keeps them in place has, too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.studies.resampling import Resampled, Resamples, estimate, interval

SHUFFLES = 1000
RENUMBERED = "key/value groups"
"""What the control renumbers, as records say; in those of earlier versions single heads."""

_ONE_LAYER = "the model has one layer: none comes after another"
_SHUFFLING = 2  # tells these draws from others of the same seed


def conditionals(
    sinks: np.ndarray, weights: Resamples, seed: int, num_kv_heads: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every source layer's conditional, and the best source layer by lift.

    Args:
      sinks: bool [P, L, N].
      weights: of the prompts in each resample.
      num_kv_heads: K, that divides N.

    Returns:
      `conditional` and `best_source` of a cell's result. The interval of the best source's lift is
      that layer's own and takes no account of its having been picked; `shuffled_best_lift` does.
    """
    num_prompts, num_layers, num_heads = sinks.shape
    by_prompt, later = _totals_by_prompt(sinks)
    totals = by_prompt.summed()
    observed = _rates(totals, num_prompts * num_heads)
    resampled = _rates(by_prompt.weighted(weights), num_prompts * num_heads)
    both = _shuffled_both(sinks[:, :-1], later, seed, num_kv_heads)
    shuffled = _rates(totals._replace(both=both), num_prompts * num_heads)

    conditional = []
    for layer in range(num_layers - 1):
        undefined = _undefined(totals, layer, num_prompts, num_prompts * num_heads)
        estimates = {
            name: estimate(
                observed[name][layer], resampled[name][:, layer], num_prompts, undefined[name]
            )
            for name in observed
        }
        control = {
            name: _shuffled_estimate(shuffled[name][:, layer], undefined[name])
            for name in ("given_sink", "lift")
        }
        count = int(totals.source[layer])
        conditional.append(
            {
                "source_layer": layer,
                "n": count,
                "pairs": count * (num_layers - 1 - layer),
                **estimates,
                "shuffled": control,
            }
        )
    why = _no_lift(sinks) if np.isnan(observed["lift"]).all() else ""
    best = _best(conditional, observed["lift"], shuffled["lift"], "source_layer", why)
    return conditional, {**best, "undefined": why} if why else best


def later_layers(
    sinks: np.ndarray, weights: Resamples, seed: int, num_kv_heads: int
) -> dict[str, Any]:
    """Layer 0's conditional on each later layer alone, and the later layer of the greatest lift.

    Pooled over all later layers a link to layer 1 alone would hardly be seen.

    Args:
      sinks, weights, seed, num_kv_heads: as of `conditionals`.

    Returns:
      `later_layers` of a cell's result: `layers`, one for each from 1 on, with the renumberings of
      layer 0 that its pooled conditional is held against, and `best`, as `best_source`.
    """
    num_prompts, num_layers, num_heads = sinks.shape
    z = sinks.astype(np.float64)
    later = z[:, 1:]
    of_source = np.repeat(z[:, 0].sum(axis=1)[:, None], num_layers - 1, axis=1)
    by_prompt = _Totals(of_source, later.sum(axis=2), np.einsum("pn,pln->pl", z[:, 0], later))
    totals, pairs = by_prompt.summed(), num_prompts * num_heads
    alone = np.ones(num_layers - 1)
    observed = _rates(totals, pairs, alone)
    resampled = _rates(by_prompt.weighted(weights), pairs, alone)
    rng = np.random.default_rng((_SHUFFLING, seed))
    heads, order = np.arange(num_heads), renumberings(rng, num_heads, num_kv_heads)
    agreements = np.einsum("pn,plm->lnm", z[:, 0], later)
    both = agreements[:, order, heads].sum(axis=2).T  # [shuffles, L - 1]
    shuffled = _rates(totals._replace(both=both), pairs, alone)["lift"]
    no_source = _no_sinks(0, num_prompts) if not totals.source.any() else ""
    layers = []
    for index, count in enumerate(totals.later):
        no_later = "" if count else _no_sinks(index + 1, num_prompts)
        undefined = {"given_sink": no_source, "base_rate": "", "lift": no_source or no_later}
        estimates = {
            name: estimate(observed[name][index], resampled[name][:, index], num_prompts, reason)
            for name, reason in undefined.items()
        }
        control = {"lift": _shuffled_estimate(shuffled[:, index], undefined["lift"])}
        layers.append({"layer": index + 1, **estimates, "shuffled": control})
    why = no_source or "no later layer has a sink head"
    return {"layers": layers, "best": _best(layers, observed["lift"], shuffled, "layer", why)}


def layer_0_lift(sinks: np.ndarray, weights: Resamples) -> Resampled:
    """The lift of layer 0 over all later layers, from bool [P, L, N] and prompts' weights."""
    num_prompts, num_layers, num_heads = sinks.shape
    if num_layers == 1:
        nothing = np.full(len(weights), np.nan)
        return Resampled(math.nan, nothing, _ONE_LAYER)
    by_prompt, _ = _totals_by_prompt(sinks)
    totals = by_prompt.summed()
    return Resampled(
        float(_rates(totals, num_prompts * num_heads)["lift"][0]),
        _rates(by_prompt.weighted(weights), num_prompts * num_heads)["lift"][:, 0],
        _undefined(totals, 0, num_prompts, num_prompts * num_heads)["lift"],
    )


class _Totals(NamedTuple):
    """The counts that the conditionals of all S = L - 1 source layers are made of.

    Leading axes are prompts, resamples or shuffles, or none.

    Attributes:
      source: sinks in the source layer, float64 [..., S].
      later: sinks in all the layers after it, float64 [..., S].
      both: pairs of a sink of the source layer and a later layer in which the head of the same
        index is a sink too, float64 [..., S].
    """

    source: np.ndarray
    later: np.ndarray
    both: np.ndarray

    def summed(self) -> "_Totals":
        return _Totals(*(counts.sum(axis=0) for counts in self))

    def weighted(self, weights: Resamples) -> "_Totals":
        return _Totals(*(weights @ counts for counts in self))


def _totals_by_prompt(sinks: np.ndarray) -> tuple[_Totals, np.ndarray]:
    """Counts of each prompt, from bool [P, L, N].

    Returns:
      the totals, with leading axis P, and how many later layers have head n as a sink: float64
      [P, S, N].
    """
    z = sinks.astype(np.float64)
    from_here = np.cumsum(z[:, ::-1], axis=1)[:, ::-1]  # sinks of layers l >= s
    source, later = z[:, :-1], from_here[:, 1:]
    totals = _Totals(source.sum(axis=2), later.sum(axis=2), np.einsum("psn,psn->ps", source, later))
    return totals, later


def _rates(
    totals: _Totals, num_heads: int, later_layers: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The conditionals by name, [..., S] each and NaN where undefined.

    Args:
      totals: counts.
      num_heads: (prompt, head) pairs in one layer, P·N.
      later_layers: [S], that each is pooled over; None for all after its source layer.
    """
    if later_layers is None:
        later_layers = np.arange(totals.source.shape[-1], 0, -1)
    pairs = num_heads * later_layers
    source, later, both = totals.source * later_layers, totals.later, totals.both
    with np.errstate(invalid="ignore"):  # all that is undefined is 0 / 0
        return {
            "given_sink": both / source,
            "given_not": (later - both) / (pairs - source),
            "base_rate": later / pairs,
            # given_sink / base_rate, rounded once, so that equal lifts are equal numbers.
            "lift": (both * pairs) / (source * later),
            # The correlation of two indicators, in counts; under one root, so that ±1 is exact.
            "phi": (pairs * both - source * later)
            / np.sqrt(source * (pairs - source) * (later * (pairs - later))),
        }


def _undefined(totals: _Totals, layer: int, num_prompts: int, num_heads: int) -> dict[str, str]:
    """Why each of the layer's rates would be undefined; "" where it is not."""
    pairs = num_heads * (totals.source.shape[-1] - layer)
    in_all = "in the one prompt" if num_prompts == 1 else f"in all of the {num_prompts} prompts"
    source, later = totals.source[layer], totals.later[layer]
    no_source = "" if source else _no_sinks(layer, num_prompts)
    all_source = f"every head of layer {layer} is a sink {in_all}" if source == num_heads else ""
    no_later = "" if later else _no_sinks(layer, num_prompts, "no layer after layer {} has a sink")
    all_later = f"every head after layer {layer} is a sink {in_all}" if later == pairs else ""
    return {
        "given_sink": no_source,
        "given_not": all_source,
        "base_rate": "",
        "lift": no_source or no_later,
        "phi": no_source or all_source or no_later or all_later,
    }


def _no_sinks(layer: int, num_prompts: int, what: str = "layer {} has no sink") -> str:
    """The reason why a ratio of a layer's sinks is undefined."""
    where = "in the one prompt" if num_prompts == 1 else f"in any of the {num_prompts} prompts"
    return f"{what.format(layer)} head {where}"


def renumberings(rng: np.random.Generator, num_heads: int, num_kv_heads: int) -> np.ndarray:
    """Draws `SHUFFLES` orders of the heads that keep groups together: int [shuffles, N]."""
    size = num_heads // num_kv_heads
    groups = rng.permuted(np.tile(np.arange(num_kv_heads), (SHUFFLES, 1)), axis=1)
    within = rng.permuted(np.tile(np.arange(size), (SHUFFLES, num_kv_heads, 1)), axis=2)
    return (size * groups[..., None] + within).reshape(SHUFFLES, num_heads)


def num_renumberings(num_heads: int, num_kv_heads: int) -> int:
    """Returns how many such orders there are."""
    within = math.factorial(num_heads // num_kv_heads)
    return math.factorial(num_kv_heads) * within**num_kv_heads


def _shuffled_both(
    source: np.ndarray, later: np.ndarray, seed: int, num_kv_heads: int
) -> np.ndarray:
    """`_Totals.both` with the heads of each source layer renumbered.

    The layers after it keep their numbers, and each source layer gets permutations of its own: were
    all layers numbered by chance, each would be so independently of those after it, so that the
    greatest lift of a shuffle is the greatest of L - 1 independent ones.

    Args:
      source: bool [P, S, N].
      later: float64 [P, S, N], later layers in which head n is a sink.
      seed: of the permutations.
      num_kv_heads: K.

    Returns:
      float64 [shuffles, S].
    """
    num_sources, num_heads = source.shape[1:]
    heads = np.arange(num_heads)
    rng = np.random.default_rng((_SHUFFLING, seed))
    both = np.empty((SHUFFLES, num_sources))
    for layer in range(num_sources):
        # One permutation serves all prompts, so these counts are all that it can matter to.
        agreements = source[:, layer].T.astype(np.float64) @ later[:, layer]  # [N, N]
        order = renumberings(rng, num_heads, num_kv_heads)
        both[:, layer] = agreements[order, heads].sum(axis=1)
    return both


def _best(
    layers: Sequence[Mapping[str, Any]],
    lifts: np.ndarray,
    shuffled: np.ndarray,
    name: str,
    undefined: str,
) -> dict[str, Any]:
    """The layer of the greatest lift (the lowest of equals), beside what chance picks.

    Args:
      layers: what is known of each, with the number under `name`.
      lifts, shuffled: [layers] and [shuffles, layers], NaN where undefined.
      undefined: why all are, if they are.
    """
    defined = np.flatnonzero(~np.isnan(lifts))
    if not defined.size:
        nothing = {"value": None, "undefined": undefined}
        return {"layer": None, "lift": nothing, "shuffled_best_lift": nothing}
    best = layers[defined[np.argmax(lifts[defined])]]
    chance = _shuffled_estimate(shuffled[:, defined].max(axis=1))
    return {"layer": best[name], "lift": best["lift"], "shuffled_best_lift": chance}


def _no_lift(sinks: np.ndarray) -> str:
    """Why no source layer has a lift, of bool [P, L, N] in which none has."""
    layers = np.flatnonzero(sinks.any(axis=(0, 2)))  # two of them would define the first one's lift
    if sinks.shape[1] == 1:
        return _ONE_LAYER
    if not layers.size:
        return "no head of any layer is a sink in any prompt"
    return f"layer {layers[0]} alone has sink heads"


def _shuffled_estimate(values: np.ndarray, undefined: str = "") -> dict[str, Any]:
    """The mean and the spread over shuffles, [shuffles]; all are NaN, or none."""
    if np.isnan(values[0]):
        return {"value": None, "undefined": undefined}
    return {"value": float(values.mean()), **interval(values)}
