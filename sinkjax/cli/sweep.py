"""Sweeps attention sinks over models, prompts, lengths, BOS policies, definitions and thresholds.

  python -m experiments.sweep --flagfile=configs/quickstart.flags
  python -m experiments.sweep --model=meta-llama/Llama-3.2-1B --lengths=2,8,24,64 --dry_run
  python -m experiments.sweep --text=book.txt --lengths=64,256,1024 --output_dir=results/book

Without --prompts and --text, two sources need no file and no network: about a hundred short
prompts written for the project, at lengths up to 64, and windows of Python's own language reference
at every length. The founding study's two prompts are measured whole beside them (--nostudy leaves
them out).

Everything goes to --output_dir: records.jsonl (one record a cell), measured/ (the scores of every
prompt), report.html and figures/. A sweep that was stopped goes on where it was when the same
command is given again.
"""

from typing import Any

from absl import flags
from tqdm import tqdm

import sinkjax
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.instruments.sinks import DEFAULT_TAIL, DEFINITIONS
from sinkjax.report.table import Table
from sinkjax.studies import texts as inputs
from sinkjax.studies.pages import write_report
from sinkjax.studies.prompts import BOS_POLICIES
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep.study import (
    Progress,
    Series,
    Settings,
    Source,
    Subject,
    count_operations,
    count_records,
    plan_sweep,
    run_sweep,
)
from sinkjax.studies.sweep.tables import summary_tables

_SHORT_LENGTHS = 64  # the project's short prompts have at least 70 tokens

cli.define_model_flags(many=True)
_PROMPTS = flags.DEFINE_multi_string(
    "prompts", [], "File of prompts: .txt, one a line, or .jsonl. May be repeated."
)
_TEXT = flags.DEFINE_multi_string(
    "text", [], "Text file, cut into windows of each length at seeded places. May be repeated."
)
_STUDY = flags.DEFINE_bool("study", True, "Measure the founding study's two prompts as well.")
_LENGTHS = flags.DEFINE_list(
    "lengths", ["2", "4", "8", "16", "24", "32", "64", "128", "256"], "Tokens, BOS included."
)
_BOS = flags.DEFINE_list(
    "bos", ["tokenizer"], f"BOS policies, of {', '.join(BOS_POLICIES)}: as the tokenizer does it."
)
_DEFINITIONS = flags.DEFINE_list(
    "definitions", ["mean"], f"Of a head's sink score, of {', '.join(DEFINITIONS)}."
)
_THRESHOLDS = flags.DEFINE_list(
    "thresholds", ["0.9"], "Shares of attention within (0, 1) above which a head is a sink."
)
_KEY = flags.DEFINE_integer(
    "key_position", 0, "The key whose attention is measured, 0 to 7; 0 is the first token."
)
_TAIL = flags.DEFINE_integer("tail", DEFAULT_TAIL, "Queries that the definition tail averages.")
_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 100, "Prompts at one length, at most.")
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 131_072, "Tokens at one length, at most: fewer prompts at great lengths."
)
_MIN_SHARE = flags.DEFINE_float(
    "min_share", 0.9, "A head holds at a length if it is a sink in this share of prompts."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of window places, resamples and shuffles.")
_OUTPUT = flags.DEFINE_string("output_dir", "results/sweep", "Folder for records and report.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the cells and an estimate, and stop.")


def main() -> None:
    settings = Settings(
        lengths=tuple(sorted(cli.numbers("lengths", _LENGTHS.value, int))),
        bos=tuple(_BOS.value),
        definitions=tuple(_DEFINITIONS.value),
        thresholds=tuple(cli.numbers("thresholds", _THRESHOLDS.value, float)),
        key_position=_KEY.value,
        tail=_TAIL.value,
        num_prompts=_NUM_PROMPTS.value,
        max_tokens=_MAX_TOKENS.value,
        min_share=_MIN_SHARE.value,
        seed=_SEED.value,
    )
    series = plan_sweep(_subjects(), _sources(settings), settings)
    console = terminal.console()
    if _DRY_RUN.value:
        terminal.print_table(console, _planned(series, settings))
        return
    _run(series, settings)
    specification, records = read_records(_OUTPUT.value)
    for table in summary_tables(specification, _shown(records, settings)):
        terminal.print_table(console, table)
    rules = len(settings.definitions) * len(settings.thresholds)
    if rules > 1:
        console.print(f"Shown is the first of {rules} rules of what a sink is; the report has all.")
    console.print(f"report: {write_report(_OUTPUT.value)}", soft_wrap=True)


def _subjects() -> list[Subject]:
    return cli.each(
        cli.models(),
        lambda name: Subject(
            name=name,
            config=sinkjax.load_config(name, revision=cli.revision()),
            tokenizer=sinkjax.load_tokenizer(name, revision=cli.revision()),
            load=lambda: cli.load_model(name),
        ),
    )


def _sources(settings: Settings) -> list[Source]:
    lengths, count, seed = settings.lengths, settings.num_prompts, settings.seed
    if _PROMPTS.value or _TEXT.value:
        named = [
            Source(p, "prompts", lengths) for p in cli.each(_PROMPTS.value, inputs.read_prompts)
        ]
        read = lambda path: inputs.read_text(path, count, seed)  # noqa: E731
        named += [Source(text, "text", lengths) for text in cli.each(_TEXT.value, read)]
    else:
        short = tuple(length for length in lengths if length <= _SHORT_LENGTHS)
        named = [Source(inputs.default_prompts(), "prompts", short)] if short else []
        named.append(Source(inputs.default_text(count, seed), "text", lengths))
    study = inputs.study_prompts() if _STUDY.value else ()
    return [*(Source(prompts, "study") for prompts in study), *named]


def _run(series: list[Series], settings: Settings) -> None:
    """Runs the sweep under two bars, one for tokens and one for records."""
    tokens = sum(rows.size for one in series for rows in one.tokens.values())
    with (
        tqdm(total=tokens, unit=" tokens", desc="measuring", smoothing=0.05) as measured,
        tqdm(total=count_records(series, settings), unit=" records", desc="records") as records,
    ):

        def show(progress: Progress) -> None:
            measured.set_postfix_str(progress.text, refresh=False)
            measured.update(progress.tokens)
            records.update(progress.records)

        run_sweep(series, settings, _OUTPUT.value, show)


def _shown(records: list[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """What a terminal has room for: the study's prompts, and the first definition and threshold."""
    first = {"definition": settings.definitions[0], "threshold": settings.thresholds[0]}
    return [r for r in records if r["source"]["role"] == "study" or first.items() <= r.items()]


def _planned(series: list[Series], settings: Settings) -> Table:
    """Every cell that a sweep would make, and about how long it would take here."""
    rows = [
        (
            one.subject.name,
            one.source.prompts.name,
            one.bos,
            str(length),
            str(count),
            definition,
            f"{threshold:g}",
        )
        for one in series
        for length, count in one.cells
        for definition in settings.definitions
        for threshold in settings.thresholds
    ]
    operations = sum(count_operations(one) for one in series)
    rate = terminal.matrix_rate()
    return Table(
        title=f"{len(rows)} cells, nothing run",
        columns=("model", "prompts", "BOS", "tokens", "prompts", "definition", "threshold"),
        rows=rows,
        notes=(
            f"{operations / 1e12:.2f} TFLOP to measure, what the folder holds already included. At "
            f"half of the {rate / 1e9:.0f} GFLOP/s that this machine's matrix product makes now: "
            f"about {terminal.duration(operations / (rate / 2))}, downloads and compilation apart.",
        ),
    )
