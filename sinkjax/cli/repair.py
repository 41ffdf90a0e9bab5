"""How much of a mask's cost does a short training of what is left make up for?

  python -m experiments.repair --mask=mask.json --choose_text=one.txt --text=other.txt
  python -m experiments.repair --mask='L0: 9f | L1-29: 9w(4,32)' --steps=60

The mask's model is trained to say what the baseline says on --choose_text: of each layer that the
mask changes, the output slices of its heads and the bias alone. The KL to the baseline is measured
on --text, as it was and repaired.

Everything goes to --output_dir: records.jsonl, report.html with the loss, figures/,
checkpoints/, and the repair, MASK.repair.safetensors: keep it beside the mask;
sinkjax.distill.load_repair reads it. A run that was stopped goes on from its last checkpoint when
the same command is given again.
"""

import pathlib

from absl import flags
from tqdm import tqdm

from sinkjax.cli import flags as cli
from sinkjax.cli import held_out, masks, terminal
from sinkjax.errors import InputError
from sinkjax.studies.pages import write_report
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep.study import Progress
from sinkjax.studies.training.page import training_tables
from sinkjax.studies.training.study import run_repair

cli.define_model_flags()
_MASK = flags.DEFINE_string("mask", None, "File of a mask, or its text form.")
held_out.define_window_flags(lengths=["256"], choose_windows=128, num_windows=8)
held_out.define_training_flags(steps=60, learning_rate=3e-4)
_OUTPUT = flags.DEFINE_string("output_dir", "results/repair", "Folder for the records.")


def main() -> None:
    settings = held_out.training_settings()
    settings.check()
    if not _MASK.value:
        raise InputError("--mask is missing: give the file of a mask, or its text form")
    chosen_on, judged_on = held_out.read_series()
    if len(judged_on.tokens) != 1:
        raise InputError("--lengths: a mask is repaired at one length; give one")
    found = masks.read_masks([_MASK.value], judged_on.subject.config)
    if len(found) != 1:
        raise InputError(f"--mask={_MASK.value}: one mask is repaired at a time; give one")
    ((named, (mask, fills)),) = found.items()
    name = pathlib.Path(named).stem if named.endswith(".json") else "mask"
    total = held_out.count_tokens(chosen_on, judged_on, settings, 2)
    with tqdm(total=total, unit=" tokens", desc="training", smoothing=0.05) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(progress.text, refresh=False)
            bar.update(progress.tokens)

        run_repair(
            chosen_on,
            judged_on,
            mask,
            settings,
            _OUTPUT.value,
            show,
            name=name,
            fills=fills.get(mask),
        )
    _, records = read_records(_OUTPUT.value)
    console = terminal.console()
    for table in training_tables(records):
        terminal.print_table(console, table)
    console.print(f"report: {write_report(_OUTPUT.value)}", soft_wrap=True)
    console.print(f"repair: {_OUTPUT.value}/{name}.repair.safetensors", soft_wrap=True)
