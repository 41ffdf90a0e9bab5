"""A search from windows to records: a mask chosen on one text, judged on windows it never saw.

  plan_search   all that can be refused before any weight is read
  run_search    searches and judges what is not there yet, and appends the records

Whatever is measured is kept before the next begins, under a name that says what it was. A run that
is killed measures again what it was measuring, finds all else, and ends as if it had not been.

Held against the chosen mask are others of its size, each with as many units on each path:

  random control         heads drawn at random, as many in each layer
  sink score             the heads of the highest sink scores, those on the paths that save most
  sink score, widest     the same heads, all on the path that costs a head least
  own error              the heads of the least own error under the path
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.errors import InputError
from sinkjax.instruments.compare import QualityStats
from sinkjax.instruments.judge import SCORE_FROM, Judge
from sinkjax.masks.choose import by_ranking, random_control
from sinkjax.masks.file import Provenance
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import tokens_digest
from sinkjax.studies.quality.candidate import Candidate
from sinkjax.studies.quality.summary import measured_quality, summarize_quality
from sinkjax.studies.results import Results
from sinkjax.studies.search.grow import (
    OBJECTIVES,
    RANKINGS,
    Found,
    SearchSettings,
    search_mask,
    sink_scores,
)
from sinkjax.studies.store import Store
from sinkjax.studies.sweep.study import Progress, Series, describe_model, describe_source

CHOSEN = "chosen"
CONTROLS = ("random control", "sink score", "sink score, widest", "own error")

_RECORD_BYTES, _POSITION_BYTES = 65_536, 32  # upper bounds: of a record, of a judged position


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Windows that no choice sees.

    Attributes:
      series: their text.
      windows: int32 [W, T].
    """

    series: Series
    windows: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """What a run does.

    Attributes:
      settings: of the search.
      series: the text that is chosen on.
      ranking, held: int32 [W, T], windows of it on which costs are predicted, and KL measured.
      judged: windows on which the outcome is judged.
    """

    settings: SearchSettings
    series: Series
    ranking: np.ndarray
    held: np.ndarray
    judged: tuple[Judged, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model, at most."""
        settings = self.settings
        passes = 2 + 2 * settings.samples if settings.ranking == "sensitivity" else 1
        ranked = self.ranking.size * (settings.rounds * (1 + passes) + 3)
        measured = self.held.size * settings.rounds * settings.tries
        return ranked + measured + (1 + len(CONTROLS)) * sum(j.windows.size for j in self.judged)


def plan_search(
    settings: SearchSettings,
    series: Sequence[Series],
    *,
    ranking: int,
    held: int,
    judged: int,
) -> Search:
    """Divides windows among ranking, measuring and judging.

    Args:
      settings: of the search; its workload's length is that of the windows.
      series: of one model, from `plan_sweep`, at one length. The first one's text is chosen on; its
        windows beyond `ranking + held` are judged on, as are the others. They are not
        where gates were trained on that text, of which they may have seen any window.
      ranking, held, judged: windows of each kind.

    Raises:
      InputError: listing settings out of their range, and texts with too few windows.
    """
    first, *others = series
    problems = [*_setting_problems(settings), *_gate_problems(settings, first.subject.config)]
    length = settings.workload.length
    first_sha256 = first.source.prompts.sha256
    seen = settings.gates is not None and settings.gates.text_sha256 == first_sha256
    if seen and not others:
        problems.append(
            "--judge_text is missing: the gates were trained on --text, so that no window of it is "
            "left to judge on; give another text"
        )
    for name, count in (("rank", ranking), ("hold", held), ("judge", judged)):
        if count < 1:
            problems.append(f"--{name}_windows={count}: give at least 1")
    wanted = [(first, ranking + held + (0 if seen else judged)), *((one, judged) for one in others)]
    for one, count in wanted:
        found = len(one.tokens.get(length, ()))
        if found < count:
            problems.append(
                f"--length={length}: {one.source.prompts.name} has {found} windows of that many "
                f"tokens, {count} are wanted: give a longer text, or ask for fewer windows"
            )
    sources = [one.source.prompts.sha256 for one in series]
    if len(set(sources)) < len(sources):
        problems.append(
            "--judge_text is the text that is chosen on, or is there twice: other windows of "
            "--text are judged on in any case; give another text or none"
        )
    if problems:
        raise InputError(*problems)
    rows = first.tokens[length]
    return Search(
        settings,
        first,
        rows[:ranking],
        rows[ranking : ranking + held],
        (
            *(() if seen else (Judged(first, rows[ranking + held : ranking + held + judged]),)),
            *(Judged(one, one.tokens[length][:judged]) for one in others),
        ),
    )


def run_search(
    search: Search,
    folder: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Found:
    """Runs what a folder does not hold yet.

    Args:
      search: of `plan_search`.
      folder: for the results; for users, the value of --output_dir.
      on_progress: called after every step.

    Returns:
      what was found; the folder holds a record of kind "search", and one of kind "quality" for
      each judged text of the chosen mask and of each of `CONTROLS`.

    Raises:
      InputError: for weights that cannot be read, or a folder that cannot be used.
    """
    subject = search.series.subject
    model = subject.load()
    described = describe_model(subject, model)
    on_progress(Progress("model", f"loaded {subject.name}"))
    gates = search.settings.gates
    if gates is not None and gates.model_digest != described["model_digest"]:
        raise InputError(
            f"--gates are of another model than --model={subject.name}: give the folder of its own"
        )
    with Results(folder, _specification(search, described)) as results:
        judged_tokens = sum(judged.windows.size for judged in search.judged)
        records = 1 + (1 + len(CONTROLS)) * len(search.judged)
        results.reserve(_RECORD_BYTES * records + _POSITION_BYTES * records * judged_tokens)

        def keep_progress(what: str, tokens: int) -> None:
            on_progress(Progress("measured", what, tokens=tokens))

        store = Store(results, described["model_digest"], keep_progress)
        found = search_mask(model, search.ranking, search.held, search.settings, store)
        scores = sink_scores(model, search.ranking, store)
        masks = {CHOSEN: found.mask, **control_masks(found, search.settings, model.config, scores)}
        common = _common(search, described)
        results.record({"kind": "search", **common}, lambda: _summary(found, masks))
        on_progress(Progress("record", "search", records=1))
        for judged in search.judged:
            _judge(model, judged, masks, found.fills, common, store, results, on_progress)
    return found


def control_masks(
    found: Found, settings: SearchSettings, config, scores: np.ndarray
) -> dict[str, SinkMask]:
    """What the chosen mask has to beat: others with as many heads off `full`, by their names.

    Args:
      found: the search's outcome.
      settings: of the search.
      config: of the model.
      scores: float [L, N], sink scores.
    """
    kv_heads = config.num_kv_heads if settings.by == "group" else None
    size = 1 if kv_heads is None else config.num_heads // kv_heads
    order = sorted(zip(-found.savings, map(str, settings.paths), settings.paths, strict=True))
    counts = [path for layer in found.mask.heads for path in layer[::size]]
    taken = [path for *_, path in order for _ in range(counts.count(path))]
    widest = settings.paths[int(found.errors.mean(axis=(1, 2)).argmin())]
    # Of all paths a head's least costly one: what no path suits is last.
    least = -found.errors.min(axis=0)
    masks = (
        random_control(found.mask, seed=settings.seed, num_kv_heads=kv_heads),
        by_ranking(scores, taken, num_kv_heads=kv_heads),
        by_ranking(scores, [widest] * len(taken), num_kv_heads=kv_heads),
        by_ranking(least, taken, num_kv_heads=kv_heads),
    )
    return dict(zip(CONTROLS, masks, strict=True))


def saved_search(records: Sequence[Mapping[str, Any]]) -> tuple[Provenance, dict[str, Any]]:
    """Provenance and quality of the chosen mask, for `sinkjax.save_mask`.

    Args:
      records: of one search.
    """
    (outcome,) = (record for record in records if record["kind"] == "search")
    quality = [record for record in records if record["kind"] == "quality"]
    by_name = {
        name: [record for record in quality if record["candidate"]["name"] == name]
        for name in (CHOSEN, *CONTROLS)
    }
    provenance = Provenance.from_records(
        [outcome],
        method="KL budget",
        **outcome["settings"],
        held_kl=outcome["result"]["held_kl"],
    )
    controls = {
        name: [
            {"text": record["source"]["name"], "kl": record["result"]["kl"]["mean"]}
            for record in by_name[name]
        ]
        for name in CONTROLS
    }
    return provenance, {**measured_quality(by_name[CHOSEN]), "controls": controls}


def _judge(
    model: Llama,
    judged: Judged,
    masks: Mapping[str, SinkMask],
    fills: np.ndarray | None,
    common: Mapping[str, Any],
    store: Store,
    results: Results,
    on_progress: Callable[[Progress], None],
) -> None:
    """Appends a record of kind "quality" for each mask."""
    judges: list[Judge] = []
    for name, mask in masks.items():

        def measured(mask: SinkMask = mask) -> dict[str, np.ndarray]:
            if not judges:
                judges.append(Judge(model, judged.windows, fills=fills))
            return judges[0].stats(mask).arrays()

        arrays = store("quality", judged.windows, measured, mask=mask, fills=fills)
        length = judged.windows.shape[1]
        of_mask = {} if fills is None else {mask: fills}
        fields = {
            "kind": "quality",
            "model": common["model"],
            "candidate": Candidate(name, {length: mask}, of_mask).describe(length),
            "source": describe_source(judged.series.source),
            "bos": judged.series.bos,
            "bos_added": judged.series.bos_added,
            "length": length,
            "num_windows": len(judged.windows),
            "tokens_sha256": tokens_digest(judged.windows),
            "score_from": SCORE_FROM,
            "seed": common["settings"]["seed"],
        }
        stats, seed = QualityStats(**arrays), common["settings"]["seed"]
        results.record(fields, lambda stats=stats, seed=seed: summarize_quality(stats, seed=seed))
        on_progress(Progress("record", name, records=1))


def _summary(found: Found, masks: Mapping[str, SinkMask]) -> dict[str, Any]:
    """The "result" of a record of kind "search"."""
    return {
        "mask": str(found.mask),
        "heads": found.mask.counts(),
        "held_kl": found.kl,
        "savings": found.savings.tolist(),
        "rounds": [
            {
                "tried": [list(pair) for pair in step.tried],
                "moves": step.number,
                "kl": step.kl,
                "mask": str(step.mask),
            }
            for step in found.rounds
        ],
        "controls": {name: str(mask) for name, mask in masks.items() if name != CHOSEN},
    }


def _common(search: Search, described: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of kind "search" says but for its result."""
    series = search.series
    return {
        "model": {key: value for key, value in described.items() if key != "max_length"},
        "source": describe_source(series.source),
        "bos": series.bos,
        "bos_added": series.bos_added,
        "length": search.settings.workload.length,
        "ranking_sha256": tokens_digest(search.ranking),
        "held_sha256": tokens_digest(search.held),
        "num_windows": [len(search.ranking), len(search.held)],
        "settings": search.settings.describe(),
    }


def _specification(search: Search, described: Mapping[str, Any]) -> dict[str, Any]:
    """All that defines the records, of JSON values."""
    return {
        "experiment": "search",
        **_common(search, described),
        "judged": [
            {
                **describe_source(judged.series.source),
                "tokens_sha256": tokens_digest(judged.windows),
            }
            for judged in search.judged
        ],
    }


def _gate_problems(settings: SearchSettings, config: LlamaConfig):
    gates = settings.gates
    if gates is None:
        if settings.ranking == "gates":
            yield "--gates is missing: --ranking=gates needs the output folder of experiments.gates"
        return
    if settings.ranking != "gates":
        yield f"--ranking={settings.ranking} makes no use of --gates: give --ranking=gates, or none"
    if settings.paths != (gates.path,):
        named = ",".join(map(str, settings.paths))
        yield f"--paths={named}: the gates were learned for {gates.path}; give that path alone"
    units = {"head": (config.num_heads,), "group": (config.num_heads, config.num_kv_heads)}
    fitting = {(config.num_layers, count) for count in units[settings.by]}
    if gates.values.shape not in fitting:
        yield (
            f"--gates has {gates.values.shape[1]} a layer, in {gates.values.shape[0]} layers; "
            f"--by={settings.by} takes {' or '.join(f'{n} in {m}' for m, n in sorted(fitting))}"
        )


def _setting_problems(settings: SearchSettings):
    if not settings.paths:
        yield "--paths is empty: give at least one, such as window(4,128)"
    for path in settings.paths:
        if isinstance(path, Full | Copy):
            yield f"--paths: {path} is none to search for: give windows and sinks"
    for path in {path for path in settings.paths if settings.paths.count(path) > 1}:
        yield f"--paths: {path} is there twice"
    if not settings.kl_budget > 0:
        yield f"--kl_budget={settings.kl_budget:g}: give nats a token, above 0"
    for name, known in (("ranking", RANKINGS), ("objective", OBJECTIVES)):
        if getattr(settings, name) not in known:
            yield f"--{name}={getattr(settings, name)}: use one of {', '.join(known)}"
    for name in ("rounds", "tries", "samples"):
        if getattr(settings, name) < 1:
            yield f"--{name}={getattr(settings, name)}: give at least 1"
    if settings.seed < 0:
        yield f"--seed={settings.seed}: give 0 or more"
    workload = settings.workload
    for name in ("batch_size", "generated", "operations_per_byte"):
        if getattr(workload, name) <= 0:
            yield f"--{name}={getattr(workload, name):g}: give a number above 0"
