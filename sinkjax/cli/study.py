"""Answers a study in a terminal: bars while it runs, then its tables and where its files lie."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from absl import flags
from tqdm import tqdm

from sinkjax.cli import terminal
from sinkjax.cli.settings import define_settings, read_settings
from sinkjax.distributed import is_first
from sinkjax.report.formats import shortened
from sinkjax.studies.fields import understood
from sinkjax.studies.parts import Part
from sinkjax.studies.study import OnProgress, Size, Study, run_study


def define_study(study: type[Study]) -> Callable[[], None]:
    """Defines the flags of a study and of running it; what answers it as they say."""
    shared = {"module_name": study.__module__}  # whose help shows them
    define_settings(study, **shared)
    flags.DEFINE_string(
        "output_dir",
        f"results/{study.name}",
        "Folder for records.jsonl, a record a line, measured/ with what they are made from, and "
        "report.html with its figures/; the same command goes on from what is there.",
        **shared,
    )
    flags.DEFINE_string(
        "part",
        None,
        "Share of the cells to measure, such as 2/4 for the second of four jobs, into a folder of "
        "its own within the output folder. The same command without it then joins the parts.",
        **shared,
    )
    flags.DEFINE_bool("dry_run", False, "Print how much would be run, and stop.", **shared)
    values = flags.FLAGS

    def main() -> None:
        part = None if values.part is None else Part.parse(values.part)
        answer(read_settings(study), values.output_dir, dry_run=values.dry_run, part=part)

    return main


def answer(study: Study, folder: str, *, dry_run: bool = False, part: Part | None = None) -> None:
    """Measures what the folder does not hold yet, prints the tables, and says where the rest is.

    Of a part there are no tables before it is joined with the others.
    """
    study.check(part)
    console = terminal.console()
    if dry_run:
        terminal.print_table(console, study.planned())
        if study.size().flops:
            console.print(_estimate(study.size().flops))
        return
    size = study.size() if part is None else study.size().divided(part.of)
    with _bar(size) as show:
        specification, records = run_study(study, folder, show, part)
    if part is not None:
        console.print(
            f"part {part} has its {len(records)} records. Once all {part.of} parts have theirs, "
            "the same command without --part joins them.",
            soft_wrap=True,
        )
        return
    with understood(records):
        for table in study.tables(specification, records):
            terminal.print_table(console, table)
        console.print(f"report: {folder}/report.html", soft_wrap=True)
        for line in study.closing(folder, records):
            console.print(line, soft_wrap=True)


def _estimate(flops: float) -> str:
    rate = terminal.matrix_rate()
    return (
        f"{flops / 1e12:.2f} TFLOP to measure, what the folder holds already included. At half of "
        f"the {rate / 1e9:.0f} GFLOP/s that this machine's matrix product makes now: about "
        f"{terminal.duration(flops / (rate / 2))}, downloads and compilation apart."
    )


@contextlib.contextmanager
def _bar(size: Size) -> Iterator[OnProgress]:
    """A bar for the work; one alone, since two move the cursor, and seldom redrawn in a file."""
    interval = 0.1 if sys.stderr.isatty() else 10
    with tqdm(
        total=size.steps,
        unit=f" {size.unit}",
        desc="measuring",
        disable=not is_first(),
        smoothing=0.05,
        mininterval=interval,
    ) as bar:
        records = 0

        def show(text: str, steps: int, made: int) -> None:
            nonlocal records
            records += made
            done = f"{records}/{size.records} records, {shortened(text)}"
            bar.set_postfix_str(done, refresh=False)
            bar.update(min(steps, bar.total - bar.n))  # a part may be more than its share

        yield show
