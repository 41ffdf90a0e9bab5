"""Which heads can leave `full`, as learned gates say: trained by distillation, with a price.

  python -m experiments.gates --choose_text=one.txt --text=other.txt --lengths=256
  python -m experiments.gates --flagfile=configs/gates.flags

Every head (--units=group: every key/value group) gets a gate between its `full` output and that on
--path. The gates are trained on --choose_text to keep the model's own predictions, while --price
draws them down. Then, for each of --shares, the heads of the lowest gates leave `full`; the KL of
that mask to the baseline is measured on --text, beside masks of as many heads by own error and at
random.

Everything goes to --output_dir: records.jsonl, masks/, report.html with the loss, figures/ and
checkpoints/. A run that was stopped goes on from its last checkpoint when the same command is given
again.
"""

from absl import flags
from tqdm import tqdm

from sinkjax.cli import flags as cli
from sinkjax.cli import held_out, terminal
from sinkjax.errors import InputError
from sinkjax.studies.pages import write_report
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep.study import Progress
from sinkjax.studies.training.page import training_tables
from sinkjax.studies.training.study import GateSettings, check_gates, run_gates

cli.define_model_flags()
held_out.define_window_flags(lengths=["256"], choose_windows=128, num_windows=8)
held_out.define_training_flags(steps=100, learning_rate=0.2)
_PATH = flags.DEFINE_string("path", "window(4,32)", "Of the heads that leave full.")
_UNITS = flags.DEFINE_enum("units", "head", ("head", "group"), "What has a gate of its own.")
_PRICE = flags.DEFINE_float("price", 0.1, "What all gates open cost, in nats a token.")
_SHARES = flags.DEFINE_list("shares", ["0.3", "0.5", "0.7"], "Of the units, those off full.")
_OUTPUT = flags.DEFINE_string("output_dir", "results/gates", "Folder for the records.")


def main() -> None:
    paths = cli.paths("path", _PATH.value)
    if len(paths) != 1:
        raise InputError(f"--path={_PATH.value}: give one path, such as window(4,32)")
    settings = GateSettings(
        path=paths[0],
        units=_UNITS.value,
        price=_PRICE.value,
        shares=tuple(sorted(cli.numbers("shares", _SHARES.value, float))),
        train=held_out.training_settings(),
    )
    chosen_on, judged_on = held_out.read_series()
    check_gates(chosen_on, settings)
    total = held_out.count_tokens(chosen_on, judged_on, settings.train, 3 * len(settings.shares))
    with tqdm(total=total, unit=" tokens", desc="training", smoothing=0.05) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(progress.text, refresh=False)
            bar.update(progress.tokens)

        run_gates(chosen_on, judged_on, settings, _OUTPUT.value, show)
    _, records = read_records(_OUTPUT.value)
    console = terminal.console()
    for table in training_tables(records):
        terminal.print_table(console, table)
    console.print(f"report: {write_report(_OUTPUT.value)}", soft_wrap=True)
    console.print(f"masks: {_OUTPUT.value}/masks", soft_wrap=True)
