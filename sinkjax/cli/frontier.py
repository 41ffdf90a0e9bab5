"""Holds ways to choose heads against each other: KL against what masks of growing size save.

  python -m experiments.frontier --flagfile=configs/frontier.flags --choose_text=a.txt --text=b.txt
  python -m experiments.frontier --searches=results/search --copies=results/copies

Heads are ranked on windows of one text, and every mask is judged on windows of another. --paths
names the paths that heads are ranked for, by length: `24:sink(mean);512:sink(mean),window(4,128)`.
--searches adds the masks that experiments.search went through, --gates those that experiments.gates
chose, --copies what experiments.copies found, all at the same lengths.

What a mask saves is read from its own compiled programs, prefill and a decode step: ten seconds a
mask of smollm2-135m. --saved=by_hand takes the formulas instead, to which tests hold programs.

Everything goes to --output_dir: records.jsonl, figures/*.png and report.html. A run that was
stopped goes on where it was when the same command is given again.
"""

from absl import flags
from tqdm import tqdm

from sinkjax.cli import flags as cli
from sinkjax.cli import held_out, terminal
from sinkjax.errors import InputError
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path
from sinkjax.studies.frontier.page import frontier_table
from sinkjax.studies.frontier.study import (
    GATES,
    SAVED,
    SEARCHED,
    Candidate,
    Found,
    FrontierSettings,
    count_masks,
    run_frontier,
)
from sinkjax.studies.pages import write_report
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep.study import Progress, Series

cli.define_model_flags()
held_out.define_window_flags(
    lengths=["24", "512"], choose_windows=64, num_windows=64, max_tokens=2048
)
_PATHS = flags.DEFINE_string(
    "paths", "24:sink(mean);512:sink(mean),window(4,128)", "By length, those to rank heads for."
)
_SHARES = flags.DEFINE_list("shares", ["0.1", "0.3", "0.5", "0.7", "0.9"], "Of all heads.")
_SAMPLES = flags.DEFINE_integer("samples", 2, "Draws of labels for each window.")
_SAVED = flags.DEFINE_enum(
    "saved", "compiled", SAVED, "What masks save: of their compiled programs, or by formulas."
)
_SEARCHES = flags.DEFINE_list("searches", [], "Output folders of experiments.search.")
_GATES = flags.DEFINE_list("gates", [], "Output folders of experiments.gates.")
_COPIES = flags.DEFINE_string("copies", None, "Output folder of experiments.copies.")
_OUTPUT = flags.DEFINE_string("output_dir", "results/frontier", "Folder for records and report.")


def main() -> None:
    chosen_on, judged_on = held_out.read_series()
    settings = FrontierSettings(
        paths=_paths(sorted(judged_on.tokens)),
        shares=tuple(cli.numbers("shares", _SHARES.value, float)),
        samples=_SAMPLES.value,
        saved=_SAVED.value,
        seed=flags.FLAGS.seed,
    )
    copies = read_records(_COPIES.value)[1] if _COPIES.value else []
    _run(chosen_on, judged_on, settings, Found(_found(), copies))
    console = terminal.console()
    _, records = read_records(_OUTPUT.value)
    for length in sorted({record["length"] for record in records}):
        of_length = [record for record in records if record["length"] == length]
        terminal.print_table(console, frontier_table(of_length))
    report = write_report(_OUTPUT.value)
    console.print(f"report: {report}", soft_wrap=True)


def _paths(lengths: list[int]) -> dict[int, tuple[Path, ...]]:
    found: dict[int, tuple[Path, ...]] = {}
    for part in _PATHS.value.split(";"):
        length, _, paths = part.partition(":")
        if not length.isdecimal():
            raise InputError(f"--paths: {part!r} begins with no length; write 512:window(4,128)")
        found[int(length)] = cli.paths("paths", paths)
    missing = [str(length) for length in lengths if not found.get(length)]
    if missing:
        raise InputError(f"--paths has none for --lengths={','.join(missing)}: name some")
    return {length: found[length] for length in lengths}


def _found() -> dict[int, list[Candidate]]:
    """By length, the masks that searches went through and gates chose."""
    found: dict[int, list[Candidate]] = {}

    def add(length: int, method: str, path: str, text: str) -> None:
        one = Candidate(method, path, SinkMask.from_text(text))
        found.setdefault(length, []).append(one)

    for folder in _SEARCHES.value:
        records = [r for r in read_records(folder)[1] if r["kind"] == "search"]
        if not records:
            raise InputError(f"--searches={folder}: the search has not ended; let it, first")
        for record in records:
            result = record["result"]
            for text in [*(step["mask"] for step in result["rounds"]), result["mask"]]:
                add(record["length"], SEARCHED, "any", text)
    for folder in _GATES.value:
        records = [r for r in read_records(folder)[1] if r["kind"] == "gates"]
        if not records:
            raise InputError(f"--gates={folder}: the training has not ended; let it, first")
        for record in records:
            if record["method"] == "gates":
                add(record["length"], GATES, record["path"], record["result"]["mask"])
    return found


def _run(
    chosen_on: Series,
    judged_on: Series,
    settings: FrontierSettings,
    found: Found,
) -> None:
    """Runs it under a bar for masks."""
    with tqdm(total=count_masks(settings, found), unit=" masks", desc="judging") as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(progress.text, refresh=False)
            bar.update(progress.records)

        run_frontier(chosen_on, judged_on, settings, found, _OUTPUT.value, show)
