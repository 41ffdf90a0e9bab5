"""What copying costs, by every variant: sources are chosen on one text and judged on another."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sinkjax.errors import InputError
from sinkjax.instruments.batches import batch_rows
from sinkjax.instruments.judge import Judge
from sinkjax.instruments.own_errors import own_errors
from sinkjax.instruments.patterns import PATTERN_TOKENS
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Sink
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import tokens_digest
from sinkjax.studies.copies.fit import CRITERIA, SourceFit, fit_sources
from sinkjax.studies.copies.masks import VARIANTS, copy_mask, shuffled_copies
from sinkjax.studies.resampling import estimate_mean
from sinkjax.studies.results import Results, identity
from sinkjax.studies.sweep.study import (
    Progress,
    Series,
    describe_model,
    describe_source,
    describe_texts,
)

CONTROLS = ("shuffled", "sink")
"""The heads of `output` copying earlier heads drawn at random; as many heads on `sink(first)`,
those of the least own error under it: what needs no pattern at all."""

_RECORD_BYTES = 32_768  # an upper bound


@dataclasses.dataclass(frozen=True)
class CopySettings:
    """What is tried.

    Attributes:
      shares: of all heads, those that copy, each within (0, 1).
      seed: of the shuffled control and of resamples.
    """

    shares: tuple[float, ...] = (0.05, 0.1, 0.2)
    seed: int = 0


def run_copies(
    chosen_on: Series,
    judged_on: Series,
    settings: CopySettings,
    folder: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Runs what a folder does not hold yet.

    Args:
      chosen_on, judged_on: windows of one model at the same lengths, of `plan_sweep`.
      settings: what is tried.
      folder: for the results; for users, the value of --output_dir.
      on_progress: called after every step.

    Returns:
      the specification that the folder now belongs to.

    Raises:
      InputError: for settings out of their range, weights that cannot be read, or a folder that
        cannot be used.
    """
    check_copies(chosen_on, settings)
    subject = judged_on.subject
    model = subject.load()
    described = describe_model(subject, model)
    on_progress(Progress("model", f"loaded {subject.name}"))
    specification = {
        "experiment": "copies",
        "model": described,
        "chosen_on": _described(chosen_on),
        "judged_on": _described(judged_on),
        **dataclasses.asdict(settings),
        "shares": list(settings.shares),
    }
    lengths = sorted(judged_on.tokens)
    with Results(folder, specification) as results:
        results.reserve(_RECORD_BYTES * len(lengths) * (1 + len(settings.shares) * 6))
        for length in lengths:
            common = {
                **describe_texts(chosen_on, judged_on, length, described),
                "seed": settings.seed,
            }
            fit = _fitted(model, chosen_on.tokens[length], described, results, on_progress)
            results.record({"kind": "sources", **common}, lambda fit=fit: summarize_sources(fit))
            judged = judged_on.tokens[length]
            judge = Judge(model, judged, rows=batch_rows(judged, PATTERN_TOKENS))
            for variant, share in itertools.product((*VARIANTS, *CONTROLS), settings.shares):
                fields = {"kind": "copies", **common, "variant": variant, "share": share}
                if identity(fields) not in results:
                    mask = _mask(variant, share, fit, model, chosen_on.tokens[length], settings)
                    kl = judge(mask)
                    results.record(
                        fields, lambda mask=mask, kl=kl: _result(mask, kl, settings.seed)
                    )
                on_progress(
                    Progress(
                        "record", f"{variant} {share:g}", judged_on.tokens[length].size, records=1
                    )
                )
    return specification


def count_tokens(chosen_on: Series, judged_on: Series, settings: CopySettings) -> int:
    """What `run_copies` reports in all."""
    masks = len(settings.shares) * len((*VARIANTS, *CONTROLS))
    size = lambda series: sum(rows.size for rows in series.tokens.values())  # noqa: E731
    return size(chosen_on) + masks * size(judged_on)


def check_copies(series: Series, settings: CopySettings) -> None:
    """All that can be refused before any weight is read."""
    problems = [
        f"--shares={share:g}: give shares of all heads, above 0 and below 1"
        for share in settings.shares
        if not 0 < share < 1
    ]
    if not settings.shares:
        problems.append("--shares is empty: give at least one, such as 0.1")
    if settings.seed < 0:
        problems.append(f"--seed={settings.seed}: give 0 or more")
    if series.subject.config.num_layers < 2:
        problems.append(f"--model={series.subject.name} has one layer: there is none to copy from")
    if problems:
        raise InputError(*problems)


def summarize_sources(fit: SourceFit) -> dict[str, Any]:
    """What there is to copy, over all heads after layer 0.

    Returns:
      the "result" of a record of kind "sources": by `layer_0`, `adjacent` and `any`, the median
      over heads of the own error under the best copy relative to that under `nothing`, in place of
      the head (`output`, and `worse`, the share of heads for which nothing is better); of `any`,
      the median number of layers between a head and its best source (`distance`); and `best`
      [L][N], each head's best source as [layer, head] or None.
    """
    layers, heads = fit.nothing.shape
    layer, head, from_layer, from_head = np.indices(fit.output.shape)
    allowed = {
        "layer_0": (from_layer == 0) & (from_head == head) & (layer > 0),
        "adjacent": from_layer == layer - 1,
        "any": from_layer < layer,
    }
    found: dict[str, Any] = {}
    for name, sources in allowed.items():
        least = np.where(sources, fit.output, np.inf).min(axis=(2, 3))[1:]
        relative = least / fit.nothing[1:]
        found[name] = {
            "output": float(np.median(relative)),
            "worse": float((relative > 1).mean()),
        }
    best = fit.output.reshape(layers, heads, -1).argmin(axis=-1)
    distance = np.arange(layers)[1:, None] - best[1:] // heads
    found["any"]["distance"] = float(np.median(distance))
    sources = [[[int(one // heads), int(one % heads)] for one in row] for row in best[1:]]
    return {**found, "best": [[None] * heads, *sources]}


def _fitted(
    model: Llama,
    windows: np.ndarray,
    described: Mapping[str, Any],
    results: Results,
    on_progress: Callable[[Progress], None],
) -> SourceFit:
    """`fit_sources`, kept under a name that says of what."""
    name = identity(
        {
            "fit": list(CRITERIA),
            "model_digest": described["model_digest"],
            "tokens_sha256": tokens_digest(windows),
        }
    )
    show = lambda tokens: on_progress(Progress("measured", "sources", tokens=tokens))  # noqa: E731
    arrays = results.arrays(name)
    if arrays is None:
        fit = fit_sources(model, windows, show)
        fields = {field.name: getattr(fit, field.name) for field in dataclasses.fields(fit)}
        results.put_arrays(name, **fields)
        return fit
    show(windows.size)
    return SourceFit(**arrays)


def _mask(
    variant: str,
    share: float,
    fit: SourceFit,
    model: Llama,
    windows: np.ndarray,
    settings: CopySettings,
) -> SinkMask:
    count = max(1, round(share * fit.nothing.size))
    if variant == "sink":
        errors = own_errors(model, windows, [Sink("first")])[0]
        chosen = np.zeros(errors.size, bool)
        chosen[np.argsort(errors, axis=None, kind="stable")[:count]] = True
        return SinkMask.where(chosen.reshape(errors.shape), Sink("first"))
    if variant == "shuffled":
        return shuffled_copies(copy_mask(fit.output, "output", count), seed=settings.seed)
    return copy_mask(fit.pattern if variant == "pattern" else fit.output, variant, count)


def _result(mask: SinkMask, kl: np.ndarray, seed: int) -> dict[str, Any]:
    return {
        "heads": mask.counts(),
        "kl": estimate_mean(kl, seed),
        "mask": str(mask),
        "mask_digest": mask.digest,
    }


def _described(series: Series) -> dict[str, Any]:
    lengths = sorted(series.tokens)
    return {**describe_source(series.source), "bos": series.bos, "lengths": lengths}
