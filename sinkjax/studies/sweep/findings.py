"""What the records say, as sentences: titles of figures, and the report's opening."""

import itertools
from collections.abc import Sequence

from sinkjax.report import formats
from sinkjax.studies.sweep.records import Curve
from sinkjax.studies.sweep.tables import beyond_chance, layer_0, too_few_heads


def share_of(curve: Curve) -> str:
    """How the share of sink heads goes from the shortest length to the longest."""
    ends = curve.cells if len(curve.cells) == 1 else (curve.cells[0], curve.cells[-1])
    return ", ".join(
        f"{formats.percent(cell['result']['sinks']['share']['value'])} at "
        f"{formats.count(cell['length'])} tokens"
        for cell in ends
    )


def share_headline(curve: Curve) -> str:
    """The same as a whole sentence."""
    shares = [result["sinks"]["share"]["value"] for result in curve.results]
    if len(shares) == 1:
        return f"Share of heads that are sinks: {share_of(curve)}"
    falls = all(before >= after for before, after in itertools.pairwise(shares))
    rises = all(before <= after for before, after in itertools.pairwise(shares))
    if shares[0] == shares[-1] and falls:
        return f"The share of sink heads stays at {formats.percent(shares[0])} at every length"
    verb = "falls" if falls else "rises" if rises else "goes"
    first, last = (formats.count(curve.lengths[index]) for index in (0, -1))
    return (
        f"The share of sink heads {verb} from {formats.percent(shares[0])} at {first} tokens to "
        f"{formats.percent(shares[-1])} at {last}"
    )


def layer_0_headline(curves: Sequence[Curve]) -> str:
    """Whether layer 0 predicts which later heads are sinks, over all lengths of some curves."""
    conditionals = [layer_0(cell) for curve in curves for cell in curve.cells]
    verdicts = [beyond_chance(c["lift"], c["shuffled"]["lift"]) for c in conditionals]
    defined = [verdict for verdict in verdicts if verdict is not None]
    points = "lengths" if len(curves) == 1 else "texts and lengths"
    undefined = [c["n"] for c, at in zip(conditionals, verdicts, strict=True) if at is None]
    nothing = "its lift is undefined" if any(undefined) else "it has no sinks"
    if not defined:
        every = f"{nothing} at every length" if any(undefined) else f"{nothing} at any length"
        return f"Whether layer 0 predicts later sinks is open: {every}"
    if few := too_few_heads(curves[0]):
        return f"Whether layer 0 predicts later sinks cannot be told: {few}"
    better = sum(defined)
    verb = "does not predict" if not better else "predicts" if all(defined) else "partly predicts"
    chance = f"better than chance at {better} of {len(defined)} {points}"
    if not better:
        chance = f"no better than chance at {len(defined)} of {len(verdicts)} {points}"
    rest = f", and {nothing} at the other {len(undefined)}" if undefined else ""
    return f"Layer 0 {verb} later sinks: {chance}{rest}"


def best_source_headline(curves: Sequence[Curve]) -> str:
    """Says at how many lengths the best source layer is better than chance, over some curves."""
    best = [result["best_source"] for curve in curves for result in curve.results]
    verdicts = [beyond_chance(b["lift"], b["shuffled_best_lift"]) for b in best]
    defined = [verdict for verdict in verdicts if verdict is not None]
    points = "lengths" if len(curves) == 1 else "texts and lengths"
    if not defined:
        return f"No source layer's lift is defined at any of the {points}"
    if few := too_few_heads(curves[0]):
        return f"Whether a source layer predicts later sinks cannot be told: {few}"
    return (
        f"The best source layer predicts later sinks better than chance at {sum(defined)} of "
        f"{len(defined)} {points}"
    )


def whose(curve: Curve, among: Sequence[Curve]) -> str:
    """What to add to a headline that is true of one curve of several."""
    if len(among) == 1:
        return ""
    return f" ({formats.shortened(curve.source_name, 36)}, {curve.criterion})"


def layers_headline(curve: Curve) -> str:
    """Which layer has the largest share of sinks at the longest length."""
    shares = curve.results[-1]["per_layer"]
    longest = f"at {formats.count(curve.lengths[-1])} tokens"
    if not any(shares):
        return f"Which layers have sinks: {longest} none has"
    layer = shares.index(max(shares))
    return (
        f"Which layers have sinks: {longest} layer {layer} has most, "
        f"{formats.percent(shares[layer])} of its heads"
    )


def consistent_headline(curves: Sequence[Curve]) -> str:
    """How many heads are sinks at every length, of each text."""
    texts = []
    for curve in curves:
        result = curve.over_lengths["result"]["consistent"]
        number = f"{len(result['heads'])} of {formats.count(curve.num_heads)}"
        name = formats.shortened(curve.source_name, 36)
        texts.append(f"{number} on {name}" if len(curves) > 1 else number)
    return f"Heads that are sinks at every length: {', '.join(texts)}"


def opening(curve: Curve) -> list[str]:
    """What to say first of a curve: share, its steepest step, consistent heads, layer 0."""
    sentences = [f"{share_headline(curve)}."]
    if curve.over_lengths:
        result = curve.over_lengths["result"]
        change, heads = result["share_change"], result["consistent"]["heads"]
        if "undefined" not in change:
            support = change["support"]
            sure = "" if support is None else f", as in {formats.percent(support)} of resamples"
            sentences.append(
                f"It changes most between {formats.count(change['from'])} and "
                f"{formats.count(change['to'])} tokens "
                f"({formats.points(change['change']['value'])} pp){sure}."
            )
        share = formats.percent(result["consistent"]["min_share"], 0)
        number = f"{len(heads)} of {curve.num_heads} heads" if heads else "No head"
        verb = "is a sink" if len(heads) <= 1 else "are sinks"
        sentences.append(f"{number} {verb} in at least {share} of the prompts at every length.")
    sentences.append(f"{layer_0_headline([curve])}.")
    return sentences
