"""Times the programs of masks beside the baseline's, prefill and decode apart.

  python -m experiments.timing --mask=mask.json --prompt_lengths=512 --batch_sizes=1,8
  python -m experiments.timing --model=shape:llama-3.2-1b --prompt_lengths=512 --generated=16
  python -m experiments.timing --flagfile=configs/timing.flags

--model=shape:NAME has random weights, which take as long as trained ones. --mask takes files that
sinkjax.save_mask wrote, with commas between them, or a mask's text form, and may be repeated;
--plan takes the JSON file of a plan, whose mask for each prompt length is timed. Without either,
the baseline is timed alone.

All programs of a cell, the baseline twice, and two measurements of what the machine can read and
multiply are timed by turns in this one process. The time of a prefill is the time to the first
token. Compiling is never in a time.

Everything goes to --output_dir: records.jsonl, a line a cell with every raw sample. A run that was
stopped goes on where it was when the same command is given again.
"""

import datetime
import json
import pathlib

from absl import flags
from tqdm import tqdm

from sinkjax.cli import flags as cli
from sinkjax.cli import masks, terminal
from sinkjax.errors import InputError
from sinkjax.files import replace_file
from sinkjax.programs.compile import DEFAULT_STEPS_PER_CALL
from sinkjax.studies.results import read_records
from sinkjax.studies.timing.google_benchmark import google_benchmark
from sinkjax.studies.timing.study import (
    CLOCKS,
    STAGES,
    TimingCell,
    TimingSettings,
    Workload,
    plan_timing,
    run_timing,
)
from sinkjax.studies.timing.tables import timing_tables

cli.define_model_flags(shapes=True)
_MASK = flags.DEFINE_multi_string("mask", [], "Mask files or a mask's text. May be repeated.")
_PLAN = flags.DEFINE_multi_string("plan", [], "File of a plan. May be repeated.")
_BATCHES = flags.DEFINE_list("batch_sizes", ["1"], "Rows.")
_LENGTHS = flags.DEFINE_list("prompt_lengths", ["512"], "Tokens of every row's prompt.")
_GENERATED = flags.DEFINE_list(
    "generated", ["16"], "Tokens that are decoded after the prompt; 0 for prefill alone."
)
_STAGES = flags.DEFINE_list("stages", list(STAGES), "What is timed, each by itself.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Samples of each program, in a cell.")
_WARMUP = flags.DEFINE_integer("warmup", 2, "Runs of each program before them.")
_STEPS = flags.DEFINE_integer("steps_per_call", DEFAULT_STEPS_PER_CALL, "Decode steps of a call.")
cli.define_attention_flag()
_CLOCK = flags.DEFINE_enum(
    "clock", "auto", CLOCKS, "Whose; auto: the device's, by the profiler, but on a CPU."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of tokens, order, resamples and random weights.")
_OUTPUT = flags.DEFINE_string("output_dir", "results/timing", "Folder for the records.")
_GOOGLE = flags.DEFINE_string(
    "google_benchmark", None, "File to write the same to, in the JSON of google-benchmark."
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "Folder for a trace of each cell that is timed, for XProf."
)


def main() -> None:
    for flag, path in (("google_benchmark", _GOOGLE.value), ("profile", _PROFILE.value)):
        if path is not None and not pathlib.Path(path).absolute().parent.is_dir():
            raise InputError(f"--{flag}={path}: there is no such folder to put it into; make it")
    settings = TimingSettings(
        stages=tuple(_STAGES.value),
        rounds=_ROUNDS.value,
        warmup=_WARMUP.value,
        steps_per_call=_STEPS.value,
        attention=cli.attention(),
        clock=_CLOCK.value,
        seed=_SEED.value,
    )
    cells = _cells(settings)
    model = cli.load_model(cli.model(), seed=_SEED.value)
    with tqdm(total=len(cells) * settings.rounds, unit=" rounds", desc="timing") as bar:

        def show(cell: TimingCell, rounds: int) -> None:
            bar.set_postfix_str(cell.slug, refresh=False)
            bar.update(rounds)

        run_timing(
            model,
            cli.model(),
            cells,
            settings,
            _OUTPUT.value,
            profile=_PROFILE.value,
            on_rounds=show,
        )
    records = read_records(_OUTPUT.value)[1]
    console = terminal.console()
    for table in timing_tables(records):
        terminal.print_table(console, table)
    console.print(f"records: {_OUTPUT.value}/records.jsonl", soft_wrap=True)
    if _GOOGLE.value is not None:
        _write_google(records)


def _cells(settings: TimingSettings) -> list[TimingCell]:
    batches, lengths, generated = (
        cli.numbers(flag.name, flag.value, int) for flag in (_BATCHES, _LENGTHS, _GENERATED)
    )
    config = cli.load_config(cli.model())
    candidates = []
    if _MASK.value or _PLAN.value:
        candidates = masks.candidates(_MASK.value, _PLAN.value, config, lengths)
    workloads = [
        Workload(batch, length, count)
        for batch in batches
        for length in lengths
        for count in generated
    ]
    return plan_timing(config, candidates, workloads, settings)


def _write_google(records: list[dict]) -> None:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    content = google_benchmark(records, date=now, executable="experiments.timing")
    try:
        replace_file(pathlib.Path(_GOOGLE.value), json.dumps(content, indent=2).encode())
    except OSError as error:
        raise InputError(
            f"--google_benchmark={_GOOGLE.value} cannot be written: {error.strerror}"
        ) from error
