"""The sweep: models × prompts × lengths × BOS policies × definitions × thresholds to records.

A series is one model on one source of prompts under one BOS policy, at every length. Its prompts
are measured in chunks, every definition at once; what a chunk gave is kept before the next one
begins, and a cell is made from what was kept. So a sweep that is killed loses at most one chunk's
time, and one that goes on makes the same records as one that was never stopped.

  plan_sweep   all that can be refused before any weight is read
  run_sweep    measures what is not there yet, and appends the records
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np

from sinkjax.errors import InputError
from sinkjax.instruments.sinks import DEFINITIONS, MAX_KEY_POSITIONS, measure_sinks
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import model_digest, tokenizer_digest, tokens_digest
from sinkjax.studies.prompts import BOS_POLICIES, PromptList, PromptSet, encode
from sinkjax.studies.results import Results, identity
from sinkjax.studies.sweep.cell import summarize_cell
from sinkjax.studies.sweep.lengths import summarize_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_TOKENS = 2048
"""Tokens measured at once: enough to keep two cores busy, seconds of work to lose."""

_HEAD_BYTES, _LAYER_BYTES = 100, 1500  # that a record takes for each head and each source layer


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is swept over, and how.

    Attributes:
      lengths: tokens of a prompt, BOS included.
      bos: policies of `sinkjax.studies.prompts.encode`.
      definitions: of `sinkjax.instruments.sinks.DEFINITIONS`.
      thresholds: attention shares within (0, 1).
      key_position: the key that the scores are about.
      tail: queries that the definition `tail` averages over.
      num_prompts: the most prompts at one length.
      max_tokens: the most tokens at one length; one prompt is measured in any case.
      min_share: of the prompts in which a consistent head is a sink.
      seed: of resamples and shuffles.
    """

    lengths: tuple[int, ...]
    bos: tuple[str, ...] = ("tokenizer",)
    definitions: tuple[str, ...] = ("mean",)
    thresholds: tuple[float, ...] = (0.9,)
    key_position: int = 0
    tail: int = 16
    num_prompts: int = 100
    max_tokens: int = 131_072
    min_share: float = 0.9
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """Prompts, and the lengths at which they are used.

    Attributes:
      prompts: cut to each length.
      role: `study` prompts are used whole and without BOS, whatever the settings say.
      lengths: tokens, BOS included; of `study` prompts none.
    """

    prompts: PromptSet
    role: Literal["prompts", "text", "study"]
    lengths: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model before its weights are read.

    Attributes:
      name: as the user gave it.
      config: its shape.
      tokenizer: its own.
      load: reads the weights.
    """

    name: str
    config: LlamaConfig
    tokenizer: "PreTrainedTokenizerBase"
    load: Callable[[], Llama]


@dataclasses.dataclass(frozen=True)
class Series:
    """One model on one source of prompts under one BOS policy.

    Attributes:
      subject, source: whose and what prompts.
      bos: the policy. bos_added: whether it puts a BOS in front.
      tokens: by length T, int32 [P, T].
    """

    subject: Subject
    source: Source
    bos: str
    bos_added: bool
    tokens: Mapping[int, np.ndarray]

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(length, prompts) of each cell under one definition and threshold."""
        return [(length, len(rows)) for length, rows in self.tokens.items()]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What `run_sweep` reports after each step.

    Attributes:
      step: `model`, `measured` or `record`.
      text: what was done.
      tokens: that the step measured, or found measured.
      records: that the step made, or found made.
    """

    step: Literal["model", "measured", "record"]
    text: str
    tokens: int = 0
    records: int = 0


def plan_sweep(
    subjects: Sequence[Subject], sources: Sequence[Source], settings: Settings
) -> list[Series]:
    """Every series of a sweep, its prompts tokenized and cut.

    Raises:
      InputError: listing all that is wrong with the settings, or else with the prompts: a length
        beyond a model's context, a prompt with fewer tokens than a length needs, no BOS to add.
    """
    _check_settings(settings)
    series, problems = [], []
    for subject, source in itertools.product(subjects, sources):
        limit = subject.config.max_length
        beyond = [length for length in source.lengths if length > limit]
        if beyond:
            problems.append(
                f"--lengths={','.join(map(str, beyond))}: the context of --model={subject.name} is "
                f"{limit} tokens; leave out longer lengths"
            )
            continue
        for bos in ("never",) if source.role == "study" else settings.bos:
            try:
                series.append(_series(subject, source, bos, settings))
            except InputError as error:
                problems += error.problems
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return series


def run_sweep(
    series: Sequence[Series],
    settings: Settings,
    folder: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Runs what a folder does not hold yet.

    Args:
      series: of `plan_sweep`, for the same settings.
      folder: for the results; for users, the value of --output_dir.
      on_progress: called after every step.

    Returns:
      the specification that the folder now belongs to.

    Raises:
      InputError: for weights that cannot be read, or a folder that cannot be used: another sweep's,
        not writable, full.
    """
    by_subject = {
        subject: list(group) for subject, group in itertools.groupby(series, lambda s: s.subject)
    }
    models, described = {}, {}
    for subject in by_subject:
        models.clear()  # one model at a time, however many there are
        models[subject] = subject.load()
        described[subject] = describe_model(subject, models[subject])
        on_progress(Progress("model", f"loaded {subject.name}"))
    specification = _specification(series, settings, described)
    with Results(folder, specification) as results:
        results.reserve(_bytes_wanted(series, settings))
        for subject, own in by_subject.items():
            if subject not in models:
                models.clear()
                models[subject] = subject.load()
            for one in own:
                _run_series(
                    one, settings, models[subject], described[subject], results, on_progress
                )
    return specification


def count_records(series: Sequence[Series], settings: Settings) -> int:
    """How many records a sweep makes: one a cell, and one over the lengths but for the study's."""
    combinations = len(settings.definitions) * len(settings.thresholds)
    over_lengths = sum(one.source.role != "study" for one in series)
    return combinations * (sum(len(one.tokens) for one in series) + over_lengths)


def count_operations(series: Series) -> float:
    """Floating-point operations of measuring a series: products of the layers, causal scores."""
    config = series.subject.config
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = (
        config.embed_dim * (2 * heads + 2 * kv_heads) + 3 * config.embed_dim * config.mlp_dim
    )
    return sum(
        rows.size * config.num_layers * (2 * projections + 2 * heads * length)
        for length, rows in series.tokens.items()
    )


def describe_model(subject: Subject, model: Llama) -> dict[str, Any]:
    """The "model" of a specification; reads all parameters once."""
    config = subject.config
    return {
        "name": subject.name,
        "model_digest": model_digest(model),
        "tokenizer_digest": tokenizer_digest(subject.tokenizer),
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "max_length": config.max_length,
        "dtype": model.embedding[...].dtype.name,
    }


def describe_source(source: Source) -> dict[str, Any]:
    """The "source" of a record."""
    return {
        "name": source.prompts.name,
        "sha256": source.prompts.sha256,
        "role": source.role,
    }


def describe_texts(
    chosen_on: Series, judged_on: Series, length: int, described: Mapping[str, Any]
) -> dict[str, Any]:
    """Of a record at one length, what was chosen on one text and judged on another.

    Args:
      described: of `describe_model`.
    """
    texts = {"chosen_on": chosen_on, "source": judged_on}
    return {
        "model": {key: value for key, value in described.items() if key != "max_length"},
        **{
            name: {
                **describe_source(series.source),
                "num_windows": len(series.tokens[length]),
                "tokens_sha256": tokens_digest(series.tokens[length]),
            }
            for name, series in texts.items()
        },
        "bos": judged_on.bos,
        "bos_added": judged_on.bos_added,
        "length": length,
    }


def _check_settings(settings: Settings) -> None:
    problems = []
    shortest = settings.key_position + 2
    for length in settings.lengths:
        if length < shortest:
            problems.append(
                f"--lengths={length}: at least {shortest} tokens are needed, so that a query comes "
                f"after the key at position {settings.key_position}"
            )
    if not settings.lengths:
        problems.append("--lengths is empty: give at least one, such as 24")
    for bos in settings.bos:
        if bos not in BOS_POLICIES:
            problems.append(f"--bos={bos} is unknown: use one of {', '.join(BOS_POLICIES)}")
    for definition in settings.definitions:
        if definition not in DEFINITIONS:
            problems.append(
                f"--definitions={definition} is unknown: use one of {', '.join(DEFINITIONS)}"
            )
    for threshold in settings.thresholds:
        if not 0 < threshold < 1:
            problems.append(
                f"--thresholds={threshold} is no share of attention: give one between 0 and 1, "
                "both excluded, such as 0.9"
            )
    if not 0 <= settings.key_position < MAX_KEY_POSITIONS:
        problems.append(
            f"--key_position={settings.key_position}: use one of 0 to {MAX_KEY_POSITIONS - 1}"
        )
    if not 0 < settings.min_share <= 1:
        problems.append(f"--min_share={settings.min_share}: give a share above 0, of at most 1")
    for name in ("tail", "num_prompts", "max_tokens"):
        if getattr(settings, name) < 1:
            problems.append(f"--{name}={getattr(settings, name)}: give at least 1")
    if settings.seed < 0:
        problems.append(f"--seed={settings.seed}: give 0 or more")
    for name in ("lengths", "bos", "definitions", "thresholds"):
        values = getattr(settings, name)
        if len(set(values)) < len(values):
            problems.append(f"--{name}={','.join(map(str, values))}: a value is there twice")
    if problems:
        raise InputError(*problems)


def _series(subject: Subject, source: Source, bos: str, settings: Settings) -> Series:
    prompts, tokenizer = source.prompts, subject.tokenizer
    if source.role == "study":
        (row,) = prompts.whole(tokenizer, bos)
        if len(row) < settings.key_position + 2:
            raise InputError(
                f"--key_position={settings.key_position}: the study's prompt {prompts.name!r} has "
                f"{len(row)} tokens; add --nostudy to leave it out"
            )
        return Series(subject, source, bos, False, {len(row): row[None]})
    counts = {}
    for length in source.lengths:
        most = max(1, min(settings.num_prompts, settings.max_tokens // length))
        if isinstance(prompts, PromptList):
            most = min(most, len(prompts.texts))
        else:
            most = min(most, max(1, prompts.fits(tokenizer, length)))
        counts[length] = most
    prompts.check(tokenizer, bos, counts)
    tokens = {
        length: prompts.at_length(tokenizer, bos, length, count) for length, count in counts.items()
    }
    added = len(encode(tokenizer, "a", bos)) > len(encode(tokenizer, "a", "never"))
    return Series(subject, source, bos, added, tokens)


def _specification(
    series: Sequence[Series], settings: Settings, described: Mapping[Subject, dict[str, Any]]
) -> dict[str, Any]:
    """All that defines the sweep's cells, of JSON values."""
    sources: dict[tuple[str, str], dict[str, Any]] = {}
    for one in series:
        entry = {**describe_source(one.source), "lengths": sorted(one.tokens)}
        sources.setdefault((entry["name"], entry["sha256"]), entry)
    fields = dataclasses.asdict(settings)
    return {
        "models": list(described.values()),
        "sources": list(sources.values()),
        **{
            key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()
        },
    }


def _bytes_wanted(series: Sequence[Series], settings: Settings) -> int:
    """Upper bound of what the records and the kept arrays take."""
    total = 0
    for one in series:
        config = one.subject.config
        heads = config.num_layers * config.num_heads
        record = _HEAD_BYTES * heads + _LAYER_BYTES * config.num_layers
        total += count_records([one], settings) * record
        prompts = sum(len(rows) for rows in one.tokens.values())
        total += prompts * heads * 4 * (len(DEFINITIONS) + 1)
    return total


def _run_series(
    series: Series,
    settings: Settings,
    model: Llama,
    described: Mapping[str, Any],
    results: Results,
    on_progress: Callable[[Progress], None],
) -> None:
    """Measures one series and appends its records."""
    common = {
        "model": {key: value for key, value in described.items() if key != "max_length"},
        "source": describe_source(series.source),
        "bos": series.bos,
        "bos_added": series.bos_added,
        "key_position": settings.key_position,
        "tail": settings.tail,
        "seed": settings.seed,
    }
    scores, norms = {}, {}
    for length, tokens in series.tokens.items():
        parts = list(measure_chunks(tokens, settings, model, described, results, on_progress))
        scores[length] = np.concatenate([part["scores"] for part in parts], axis=1)
        norms[length] = np.concatenate([part["output_norm"] for part in parts])

    def append(kind: str, what: dict[str, Any], summarize: Callable[[], dict[str, Any]]) -> None:
        results.record({"kind": kind, **common, **what}, summarize)
        on_progress(Progress("record", f"{kind} of {series.source.prompts.name}", records=1))

    lengths = sorted(series.tokens)
    hashes = {length: tokens_digest(series.tokens[length]) for length in lengths}
    counts = {length: len(series.tokens[length]) for length in lengths}
    for definition, threshold in itertools.product(settings.definitions, settings.thresholds):
        index = DEFINITIONS.index(definition)
        rule = {"definition": definition, "threshold": threshold}
        seed = settings.seed
        for length in lengths:
            append(
                "cell",
                {
                    "length": length,
                    "num_prompts": counts[length],
                    "tokens_sha256": hashes[length],
                    **rule,
                },
                functools.partial(
                    summarize_cell, scores[length][index], norms[length], **rule, seed=seed
                ),
            )
        if series.source.role != "study":
            append(
                "lengths",
                {
                    "lengths": lengths,
                    "num_prompts": list(counts.values()),
                    "tokens_sha256": list(hashes.values()),
                    "min_share": settings.min_share,
                    **rule,
                },
                functools.partial(
                    summarize_lengths,
                    lengths,
                    [scores[length][index] for length in lengths],
                    # With as many prompts two lengths have the same ones, cut elsewhere.
                    list(counts.values()),
                    **rule,
                    seed=seed,
                    min_share=settings.min_share,
                ),
            )


def measure_chunks(
    tokens: np.ndarray,
    settings: Settings,
    model: Llama,
    described: Mapping[str, Any],
    results: Results,
    on_progress: Callable[[Progress], None],
) -> Iterator[dict[str, np.ndarray]]:
    """What `measure_sinks` gave for each chunk of rows, measured now or before.

    Args:
      tokens: int32 [P, T].

    Yields:
      scores, float32 [definition, rows, L, N], and output_norm, float32 [rows, L, N].
    """
    count, length = tokens.shape
    rows = min(count, max(1, CHUNK_TOKENS // length))
    for start in range(0, count, rows):
        chunk = tokens[start : start + rows]
        name = identity(
            {
                "model_digest": described["model_digest"],
                "tokens_sha256": tokens_digest(chunk),
                "key_position": settings.key_position,
                "tail": settings.tail,
            }
        )
        arrays = results.arrays(name)
        if arrays is None:
            # Filled up to the shape of the other chunks, so that one program serves them all.
            filled = np.resize(chunk, (rows, length))
            stats = measure_sinks(
                model,
                jnp.asarray(filled),
                key_positions=(settings.key_position,),
                tail=settings.tail,
            )
            arrays = {
                "scores": np.asarray(stats.scores[:, 0, : len(chunk)]),
                "output_norm": np.asarray(stats.output_norm[: len(chunk)]),
            }
            results.put_arrays(name, **arrays)
        on_progress(Progress("measured", f"{length} tokens", tokens=chunk.size))
        yield arrays
