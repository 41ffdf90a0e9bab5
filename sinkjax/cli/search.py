"""Finds a mask that costs at most a given KL, and judges it on text that the search never saw.

  python -m experiments.search --text=a.txt --judge_text=b.txt --kl_budget=0.05 --length=512
  python -m experiments.search --flagfile=configs/search.flags --text=a.txt --judge_text=b.txt
  python -m experiments.search --text=a.txt --length=24 --paths='sink(first),sink(mean)'

Windows of --text are divided: on some the cost of every head on every path is predicted, on others
the KL of whole masks is measured while the mask grows, on the last the outcome is judged, as it is
on each --judge_text. --margin is the part of the budget that the search leaves unspent, because
other text costs otherwise.

--ranking=gates takes what experiments.gates learned, for its path alone, from the folder --gates.
Text that the gates were trained on is not judged on.

Printed is the chosen mask's KL on the judged windows, beside a random control, the ranking by sink
score and that by heads' own errors, each with as many heads off `full`. The mask is written to
--mask_file with all of this inside. A run that was stopped goes on where it was when the same
command is given again.
"""

import sys

import numpy as np
from absl import flags
from tqdm import tqdm

import sinkjax
from sinkjax.accounts.savings import Workload
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.errors import InputError
from sinkjax.masks.paths import parse_path
from sinkjax.studies import texts as inputs
from sinkjax.studies.prompts import BOS_POLICIES
from sinkjax.studies.results import read_records
from sinkjax.studies.search.grow import OBJECTIVES, RANKINGS, Found, Gates, SearchSettings
from sinkjax.studies.search.study import Search, plan_search, run_search, saved_search
from sinkjax.studies.search.tables import search_tables
from sinkjax.studies.sweep import study as sweep

cli.define_model_flags()
_TEXT = flags.DEFINE_string("text", None, "Text file to choose on; default Python's reference.")
_JUDGE = flags.DEFINE_multi_string("judge_text", [], "Text file to judge on. May be repeated.")
_LENGTH = flags.DEFINE_integer("length", 512, "Tokens of a window, BOS included.")
_BUDGET = flags.DEFINE_float("kl_budget", 0.05, "The most KL to the baseline, nats a token.")
_MARGIN = flags.DEFINE_float("margin", 0.2, "Part of the budget that the search leaves unspent.")
_PATHS = flags.DEFINE_string(
    "paths",
    "sink(first),sink(mean),window(4,16),window(4,32),window(4,64),window(4,128)",
    "That heads may take, with commas between them.",
)
_BY = flags.DEFINE_enum("by", "head", ("head", "group"), "Heads, or whole key/value groups.")
_OBJECTIVE = flags.DEFINE_enum(
    "objective", "savings", OBJECTIVES, "What a move is worth: what it saves, or a head off full."
)
_RANKING = flags.DEFINE_enum("ranking", "sensitivity", RANKINGS, "How costs are predicted.")
_GATES = flags.DEFINE_string("gates", None, "Output folder of experiments.gates, to rank by.")
_BATCH = flags.DEFINE_integer("batch_size", 1, "Rows of the workload that savings count.")
_GENERATED = flags.DEFINE_integer("generated", 64, "Tokens generated after each prompt of it.")
_BALANCE = flags.DEFINE_float(
    "operations_per_byte", 10.0, "The machine's, which weighs work against memory traffic."
)
_ROUNDS = flags.DEFINE_integer("rounds", 4, "Of growing.")
_TRIES = flags.DEFINE_integer("tries", 5, "Masks measured in a round, at most.")
_SAMPLES = flags.DEFINE_integer("samples", 2, "Draws of labels for each ranking window.")
_RANK = flags.DEFINE_integer("rank_windows", 8, "Windows on which costs are predicted.")
_HOLD = flags.DEFINE_integer("hold_windows", 8, "Windows on which masks are measured.")
_JUDGED = flags.DEFINE_integer("judge_windows", 24, "Windows of each text to judge on.")
_BOS = flags.DEFINE_enum("bos", "tokenizer", BOS_POLICIES, "As it is in a sweep.")
_SEED = flags.DEFINE_integer("seed", 0, "Of window places, draws, controls and resamples.")
_OUTPUT = flags.DEFINE_string("output_dir", "results/search", "Folder for the records.")
_MASK = flags.DEFINE_string("mask_file", None, "For the mask; by default OUTPUT_DIR/mask.json.")


def main() -> None:
    if not 0 <= _MARGIN.value < 1:
        raise InputError(
            f"--margin={_MARGIN.value:g}: give a part of the budget, from 0 to below 1"
        )
    search = plan_search(
        _settings(),
        _series(),
        ranking=_RANK.value,
        held=_HOLD.value,
        judged=_JUDGED.value,
    )
    found = _run(search)
    records = read_records(_OUTPUT.value)[1]
    console = terminal.console()
    for table in search_tables(records):
        terminal.print_table(console, table)
    mask_file = _MASK.value or f"{_OUTPUT.value}/mask.json"
    provenance, quality = saved_search(records)
    sinkjax.save_mask(
        mask_file, found.mask, provenance=provenance, quality=quality, fills=found.fills
    )
    console.print(f"mask: {mask_file}", soft_wrap=True)


def _settings() -> SearchSettings:
    return SearchSettings(
        paths=cli.paths("paths", _PATHS.value),
        kl_budget=_BUDGET.value * (1 - _MARGIN.value),
        workload=Workload(_LENGTH.value, _BATCH.value, _GENERATED.value, 4, _BALANCE.value),
        by=_BY.value,
        objective=_OBJECTIVE.value,
        ranking=_RANKING.value,
        rounds=_ROUNDS.value,
        tries=_TRIES.value,
        samples=_SAMPLES.value,
        seed=_SEED.value,
        gates=_gates(),
    )


def _gates() -> Gates | None:
    """What --gates has learned."""
    if _GATES.value is None:
        return None
    for record in read_records(_GATES.value)[1]:
        if record["kind"] == "training" and "gates" in record["result"]:
            names = ("id", "chosen_on", "length", "path", "units", "price", "train")
            path = parse_path(record["path"])
            return Gates(
                np.array(record["result"]["gates"]),
                path,
                record["model"]["model_digest"],
                record["chosen_on"]["sha256"],
                {name: record[name] for name in names},
            )
    raise InputError(f"--gates={_GATES.value}: the training has not ended; let it, first")


def _series() -> list[sweep.Series]:
    """The windows of the text to choose on, then of those to judge on."""
    name, revision, seed, length = cli.model(), cli.revision(), _SEED.value, _LENGTH.value
    count = max(1, _RANK.value + _HOLD.value + _JUDGED.value)
    texts = [inputs.read_text(_TEXT.value, count, seed)] if _TEXT.value else []
    texts = texts or [inputs.default_text(count, seed)]
    texts += cli.each(
        _JUDGE.value, lambda path: inputs.read_text(path, max(1, _JUDGED.value), seed)
    )
    subject = sweep.Subject(
        name=name,
        config=cli.load_config(name),
        tokenizer=sinkjax.load_tokenizer(name, revision=revision),
        load=lambda: cli.load_model(name),
    )
    return sweep.plan_sweep(
        [subject],
        [sweep.Source(text, "text", (length,)) for text in texts],
        sweep.Settings(
            (length,), (_BOS.value,), num_prompts=count, max_tokens=sys.maxsize, seed=seed
        ),
    )


def _run(search: Search) -> Found:
    """Runs the search under a bar for tokens, of which it may need fewer."""
    with tqdm(total=search.num_tokens, unit=" tokens", desc="searching", smoothing=0.05) as bar:

        def show(progress: sweep.Progress) -> None:
            bar.set_postfix_str(progress.text, refresh=False)
            bar.update(progress.tokens)

        return run_search(search, _OUTPUT.value, show)
