"""Can it be predicted whether a head is a sink, from what is known before the head is computed?

  python -m experiments.predict --flagfile=configs/predict.flags
  python -m experiments.predict --text=book.txt --lengths=2,8,32,128 --held_out_lengths=32

A logistic model sees the layer, the head, the length, the first token, and the sink scores of all
heads of layer 0 and of the previous layer. It is fitted to some prompts at some lengths, and judged
on the others, beside each head's share of sinks, layer 0's head of the same index, the same model
with another prompt's features, and chance: AUC, Brier score, calibration, and whether acting on it
would beat a static mask, which needs no prediction.

Prompts and texts are as in experiments.sweep; without --text and --prompts, windows of Python's own
language reference. Everything goes to --output_dir: records.jsonl, and measured/ with the scores of
every prompt. A run that was stopped goes on where it was when the same command is given again.
"""

import sys

from absl import flags
from tqdm import tqdm

import sinkjax
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.instruments.sinks import DEFINITIONS
from sinkjax.studies import texts as inputs
from sinkjax.studies.predict.study import PredictSettings, check_predict, run_predict
from sinkjax.studies.predict.tables import prediction_tables
from sinkjax.studies.prompts import BOS_POLICIES
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep import study as sweep

cli.define_model_flags()
_PROMPTS = flags.DEFINE_string("prompts", None, "File of prompts: .txt, one a line, or .jsonl.")
_TEXT = flags.DEFINE_string("text", None, "Text file, cut into windows at seeded places.")
_LENGTHS = flags.DEFINE_list(
    "lengths", ["2", "4", "8", "16", "24", "32", "64", "128", "256"], "Tokens, BOS included."
)
_HELD_OUT = flags.DEFINE_list(
    "held_out_lengths", ["16", "128"], "Of --lengths, those that nothing is fitted to."
)
_SHARE = flags.DEFINE_float("held_out_share", 0.4, "Of the prompts, those to judge on.")
_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 100, "Prompts, the same at every length.")
_BOS = flags.DEFINE_enum("bos", "tokenizer", BOS_POLICIES, "As it is in a sweep.")
_DEFINITIONS = flags.DEFINE_list(
    "definitions", ["mean"], f"Of a head's sink score, of {', '.join(DEFINITIONS)}."
)
_THRESHOLDS = flags.DEFINE_list(
    "thresholds", ["0.9"], "Shares of attention within (0, 1) above which a head is a sink."
)
_SWEEP = flags.DEFINE_string(
    "sweep_dir", None, "A sweep's --output_dir: its scores of the same windows are taken over."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of window places, what is held out, and resamples.")
_OUTPUT = flags.DEFINE_string("output_dir", "results/predict", "Folder for the records.")


def main() -> None:
    settings = PredictSettings(
        held_out_lengths=tuple(sorted(cli.numbers("held_out_lengths", _HELD_OUT.value, int))),
        held_out_share=_SHARE.value,
        seed=_SEED.value,
    )
    swept = sweep.Settings(
        lengths=tuple(sorted(cli.numbers("lengths", _LENGTHS.value, int))),
        bos=(_BOS.value,),
        definitions=tuple(_DEFINITIONS.value),
        thresholds=tuple(cli.numbers("thresholds", _THRESHOLDS.value, float)),
        num_prompts=_NUM_PROMPTS.value,
        max_tokens=sys.maxsize,
        seed=_SEED.value,
    )
    series = sweep.plan_sweep([_subject()], _sources(swept), swept)
    check_predict(series, settings)
    tokens = sum(rows.size for one in series for rows in one.tokens.values())
    with tqdm(total=tokens, unit=" tokens", desc="measuring", smoothing=0.05) as bar:

        def show(progress: sweep.Progress) -> None:
            bar.set_postfix_str(progress.text, refresh=False)
            bar.update(progress.tokens)

        run_predict(series, swept, settings, _OUTPUT.value, show, sweep_folder=_SWEEP.value)
    console = terminal.console()
    for table in prediction_tables(read_records(_OUTPUT.value)[1]):
        terminal.print_table(console, table)
    console.print(f"records: {_OUTPUT.value}/records.jsonl", soft_wrap=True)


def _subject() -> sweep.Subject:
    name, revision = cli.model(), cli.revision()
    return sweep.Subject(
        name=name,
        config=sinkjax.load_config(name, revision=revision),
        tokenizer=sinkjax.load_tokenizer(name, revision=revision),
        load=lambda: cli.load_model(name),
    )


def _sources(swept: sweep.Settings) -> list[sweep.Source]:
    count, seed = swept.num_prompts, swept.seed
    texts = [("text", inputs.read_text(_TEXT.value, count, seed))] if _TEXT.value else []
    texts += [("prompts", inputs.read_prompts(_PROMPTS.value))] if _PROMPTS.value else []
    texts = texts or [("text", inputs.default_text(count, seed))]
    return [sweep.Source(prompts, role, swept.lengths) for role, prompts in texts]
