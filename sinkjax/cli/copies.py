"""Can heads copy the attention of earlier heads, and which, and what does it cost?

  python -m experiments.copies --choose_text=one.txt --text=other.txt
  python -m experiments.copies --flagfile=configs/copies.flags

For each head, the earlier head is found whose pattern serves it best: on --choose_text, by the
distance of patterns and by the error of the head's own output. Then the heads with the best sources
copy them, and the KL to the baseline is measured on --text, beside copying layer 0's head of the
same index (the founding study's idea), the layer before, heads drawn at random, and `sink` heads
that have no pattern at all.

Everything goes to --output_dir: records.jsonl, with each mask, and measured/ with the error of
every pair of heads. A run that was stopped goes on where it was when the same command is given
again. Patterns of all heads are kept for a window at a time: lengths up to about 512.
"""

from absl import flags
from tqdm import tqdm

from sinkjax.cli import flags as cli
from sinkjax.cli import held_out, terminal
from sinkjax.studies.copies.study import CopySettings, check_copies, count_tokens, run_copies
from sinkjax.studies.copies.tables import copying_tables
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep.study import Progress

cli.define_model_flags()
held_out.define_window_flags(
    lengths=["24", "256"], choose_windows=32, num_windows=32, max_tokens=2048
)
_SHARES = flags.DEFINE_list("shares", ["0.05", "0.1", "0.2"], "Of all heads, those that copy.")
_OUTPUT = flags.DEFINE_string("output_dir", "results/copies", "Folder for the records.")


def main() -> None:
    settings = CopySettings(
        shares=tuple(sorted(cli.numbers("shares", _SHARES.value, float))),
        seed=flags.FLAGS.seed,
    )
    chosen_on, judged_on = held_out.read_series()
    check_copies(chosen_on, settings)
    total = count_tokens(chosen_on, judged_on, settings)
    with tqdm(total=total, unit=" tokens", desc="measuring", smoothing=0.05) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(progress.text, refresh=False)
            bar.update(progress.tokens)

        run_copies(chosen_on, judged_on, settings, _OUTPUT.value, show)
    console = terminal.console()
    for table in copying_tables(read_records(_OUTPUT.value)[1]):
        terminal.print_table(console, table)
    console.print(f"records: {_OUTPUT.value}/records.jsonl", soft_wrap=True)
