"""What masks cost: each one's predictions held against the baseline's on the same tokens.

  python -m experiments.quality --flagfile=configs/quality.flags --mask=mask.json
  python -m experiments.quality --mask='L0: 9f | L1-29: 9w(4,128)' --text=book.txt
  python -m experiments.quality --mask=mask.json --lengths=512 --passkey=0.1,0.5,0.9

--mask takes files that sinkjax.save_mask wrote, with commas between them, or a mask's text form,
and may be repeated; --plan takes the JSON file of a plan, whose mask for each length is measured,
and whose rule holds where a continuation grows from one mask's lengths into the next one's. Texts
are as in experiments.sweep; without --text and --prompts, windows of Python's own language
reference.

Measured are the KL of each token, NLL and perplexity, the agreement of the likeliest tokens, how
long greedy continuations stay the same (--continuation_tokens), and whether a number hidden in the
text is given back (--passkey), each with an interval from resampling windows.

Everything goes to --output_dir: records.jsonl, measured/ (what each window gave), report.html and
figures/. A run that was stopped goes on where it was when the same command is given again.
"""

import sys

from absl import flags
from tqdm import tqdm

import sinkjax
from sinkjax.cli import flags as cli
from sinkjax.cli import masks, terminal
from sinkjax.errors import InputError
from sinkjax.studies import texts as inputs
from sinkjax.studies.pages import write_report
from sinkjax.studies.prompts import BOS_POLICIES
from sinkjax.studies.quality.study import SCORED, Cell, QualitySettings, plan_quality, run_quality
from sinkjax.studies.quality.tables import quality_tables
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep import study as sweep

cli.define_model_flags()
_MASK = flags.DEFINE_multi_string("mask", [], "Mask files or a mask's text form. May be repeated.")
_PLAN = flags.DEFINE_multi_string("plan", [], "File of a plan. May be repeated.")
_PROMPTS = flags.DEFINE_string("prompts", None, "File of prompts: .txt, one a line, or .jsonl.")
_TEXT = flags.DEFINE_string("text", None, "Text file, cut into windows at seeded places.")
_LENGTHS = flags.DEFINE_list("lengths", ["24", "512"], "Tokens of a window, BOS included.")
_WINDOWS = flags.DEFINE_integer("num_windows", 16, "Windows at one length, at most.")
_BOS = flags.DEFINE_enum("bos", "tokenizer", BOS_POLICIES, "As it is in a sweep.")
_SCORED = flags.DEFINE_enum("scored", "all", SCORED, "Positions of each window that count.")
_CONTINUED = flags.DEFINE_integer(
    "continuation_tokens", 32, "Of each window's greedy continuation; 0 for none."
)
_PASSKEY = flags.DEFINE_list(
    "passkey", [], "Depths, from 0 to 1, at which numbers are hidden; none for no retrieval."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of window places, hidden numbers and resamples.")
_OUTPUT = flags.DEFINE_string("output_dir", "results/quality", "Folder for records and report.")


def main() -> None:
    settings = QualitySettings(
        scored=_SCORED.value,
        passkey_depths=tuple(cli.numbers("passkey", _PASSKEY.value, float)),
        continuation_tokens=_CONTINUED.value,
        seed=_SEED.value,
    )
    series = _series()
    lengths = sorted({length for one in series for length in one.tokens})
    candidates = masks.candidates(_MASK.value, _PLAN.value, series[0].subject.config, lengths)
    cells = plan_quality(series, candidates, settings)
    _run(cells, settings)
    console = terminal.console()
    for table in quality_tables(read_records(_OUTPUT.value)[1]):
        terminal.print_table(console, table)
    hidden = {cell.length for cell in cells if cell.kind == "passkey"}
    short = sorted({cell.length for cell in cells} - hidden) if hidden else []
    if short:
        console.print(f"No number is hidden in {', '.join(map(str, short))} tokens: no room.")
    console.print(f"report: {write_report(_OUTPUT.value)}", soft_wrap=True)


def _series() -> list[sweep.Series]:
    """The windows of each text at each length."""
    name, revision, count = cli.model(), cli.revision(), _WINDOWS.value
    if count < 1:
        raise InputError(f"--num_windows={count}: give at least 1")
    lengths = tuple(sorted(cli.numbers("lengths", _LENGTHS.value, int)))
    windows = [("text", inputs.read_text(_TEXT.value, count, _SEED.value))] if _TEXT.value else []
    windows += [("prompts", inputs.read_prompts(_PROMPTS.value))] if _PROMPTS.value else []
    windows = windows or [("text", inputs.default_text(count, _SEED.value))]
    subject = sweep.Subject(
        name=name,
        config=sinkjax.load_config(name, revision=revision),
        tokenizer=sinkjax.load_tokenizer(name, revision=revision),
        load=lambda: cli.load_model(name),
    )
    return sweep.plan_sweep(
        [subject],
        [sweep.Source(prompts, role, lengths) for role, prompts in windows],
        sweep.Settings(
            lengths, (_BOS.value,), num_prompts=count, max_tokens=sys.maxsize, seed=_SEED.value
        ),
    )


def _run(cells: list[Cell], settings: QualitySettings) -> None:
    """Runs the cells under a bar for tokens."""
    total = sum(cell.num_tokens for cell in cells)
    with tqdm(total=total, unit=" tokens", desc="measuring", smoothing=0.05) as bar:

        def show(progress: sweep.Progress) -> None:
            bar.set_postfix_str(progress.text, refresh=False)
            bar.update(progress.tokens)

        run_quality(cells, settings, _OUTPUT.value, show)
