"""The tables of timing, from records only."""

from collections.abc import Mapping, Sequence

from sinkjax.report import formats
from sinkjax.report.records import Record
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.timing.measured import BASELINE

_NAME = 22  # characters of a program's name


def timing_tables(records: Sequence[Record]) -> list[Table]:
    """What the machine was, how long each program took, and what each mask saves, in order."""
    tables = [machine_table(records), _times_table(records)]
    if any(len(record["result"]["programs"]) > 1 for record in records):
        tables.append(_savings_table(records))
    return tables


def machine_table(records: Sequence[Record]) -> Table:
    """What the machine could do in each record's rounds, and the baseline beside itself."""
    rows, restless, loaded = [], [], []
    for record in records:
        result = record["result"]
        again = result["baseline_again"]["ratio"]
        holds = again["low"] <= 1 <= again["high"]
        restless += [] if holds else [cell_label(record)]
        before, after = (averages[0] for averages in result["load_average"])
        if max(before, after) > record["environment"]["cpu_count"]:
            loaded.append(cell_label(record))
        rows.append(
            (
                cell_label(record),
                _rate(result["machine"]["read"]["per_second"], 1e9),
                _rate(result["machine"]["multiply"]["per_second"], 1e9),
                f"{before:.1f}, {after:.1f}",
                show_ratio(again),
                "holds 1" if holds else "DOES NOT HOLD 1",
            )
        )
    environment, settings = records[-1]["environment"], records[-1]
    notes = [
        f"{settings['rounds']} rounds after {settings['warmup']} of warm-up, by turns, by the "
        f"{records[-1]['result']['clock']}'s clock; rates are medians, with the middle half.",
        f"{environment['device']}, {environment['cpu_count']} threads, jax {environment['jax']}; "
        f"XLA_FLAGS={environment['xla_flags']!r}.",
    ]
    if (rounds := settings["rounds"]) < 5:
        notes.append(
            f"Of {rounds} rounds an interval is from the least to the most, and covers "
            f"{1 - 2 ** (1 - rounds):.0%}."
        )
    if restless:
        notes.append(
            f"NOT TO BE RELIED ON: {'; '.join(restless)}. There the baseline differs from itself; "
            "give more rounds, or a quieter machine."
        )
    if loaded:
        notes.append(
            f"WARNING: {'; '.join(loaded)}. There the load exceeded the number of threads: other "
            "work ran beside what was timed."
        )
    return Table(
        title="The machine, in the same rounds",
        columns=(
            "batch x tokens",
            "reads GB/s",
            "multiplies GFLOP/s",
            "load before, after",
            f"baseline to itself [{_level(records)}]",
            "",
        ),
        rows=rows,
        notes=notes,
    )


def _times_table(records: Sequence[Record]) -> Table:
    shortened = lambda name: formats.shortened(name, _NAME)  # noqa: E731
    whole = lambda share: f"{share:.0%}"  # noqa: E731
    return tabulate(
        f"{records[0]['model']['name']}, {records[0]['model']['dtype']}: times",
        [
            {"cell": "" if index else cell_label(record), "name": name, **program}
            for record in records
            for index, (name, program) in enumerate(record["result"]["programs"].items())
        ],
        (
            column("batch x tokens", "cell", str),
            column("program", "name", shortened),
            column("median\nms", "seconds.median", _milliseconds),
            column("least\nms", "seconds.least", _milliseconds),
            column("spread", "seconds.spread", whole),
            column("tokens\na second", "tokens_per_second", lambda rate: f"{rate:.1f}"),
            column("limit\nms", "limit.seconds", _milliseconds),
            column("limit to\nmedian", "limit.share.value", whole),
            column("peak\nMB", "memory.peak", _megabytes),
            column("cache\nMB", "memory.cache", _megabytes),
            column("resident\nMB", "memory.cache_resident", _megabytes),
        ),
        notes=(
            "Prefill ends with the first new token on the host: its time is the time to the first "
            "token. Decode is all of its steps.",
            "Spread: the middle half over the median. Limit: the bytes and FLOPs that the step "
            "needs at least, at the rates above, whichever takes longer.",
            *_beyond_limit(records),
            "Peak: all that XLA's buffers take at once, parameters included. Resident: by how much "
            "the process's memory grew with a prompt's cache in it; decoding only.",
            _attention(records),
        ),
        labels=2,
    )


def _beyond_limit(records: Sequence[Record]) -> list[str]:
    """What it means that a program took less time than its limit; nothing where none did."""
    shares = (
        program["limit"]["share"]["value"]
        for record in records
        for program in record["result"]["programs"].values()
    )
    if all(share <= 1 for share in shares):
        return []
    return [
        "A limit above 100%: the program took less time than its bytes and FLOPs do at the rates "
        "that were measured beside it. Part of what it reads stays in the processor's caches, or "
        "the machine was slower when its rates were measured."
    ]


def _attention(records: Sequence[Record]) -> str:
    """What computed the prompts' attention: the same for all programs of a length."""
    names = {
        formats.count(record["prompt_length"]): program["attention"]
        for record in records
        for program in record["result"]["programs"].values()
    }
    listed = ", ".join(f"{name} at {length} tokens" for length, name in names.items())
    return f"A prompt's attention: {listed}."


def _savings_table(records: Sequence[Record]) -> Table:
    rows, notes = [], []
    for record in records:
        resolved = _resolved(record)
        for name, program in record["result"]["programs"].items():
            if name == BASELINE:
                continue
            limit, ratio = program["limit"], program["ratio"]
            saved, possible = 1 - ratio["value"], 1 - limit["ratio"]
            if possible <= resolved:
                notes = ["-: less can be saved than the baseline differs from itself."]
            rows.append(
                (
                    cell_label(record),
                    formats.shortened(name, _NAME),
                    times_as_fast(ratio),
                    f"{saved:.1%} of {possible:.1%}",
                    f"{saved / possible:.0%}" if possible > resolved else "-",
                    f"{1 - limit['operations_ratio']:.1%}",
                    f"{1 - limit['bytes_ratio']:.1%}",
                )
            )
    return Table(
        title="Masks beside the baseline",
        columns=(
            "batch x tokens",
            "mask",
            f"times as fast\n[{_level(records)}]",
            "saved of\npossible",
            "realized",
            "FLOPs\ngone",
            "bytes\ngone",
        ),
        rows=rows,
        notes=(
            "Times as fast as the baseline: the median over rounds, the interval from resampling "
            "them. Possible: by how much the mask's limit is below the baseline's.",
            *notes,
        ),
        labels=2,
    )


def _resolved(record: Record) -> float:
    """The least saving that is told from none: how far the baseline's interval is from itself."""
    again = record["result"]["baseline_again"]["ratio"]
    return max(1 - again["low"], again["high"] - 1)


def cell_label(record: Record) -> str:
    """`decode 1 x 512 + 16`: 16 steps for a row of 512 tokens."""
    sizes = f"{record['stage']} {record['batch_size']} x {record['prompt_length']}"
    return sizes if record["stage"] == "prefill" else f"{sizes} + {record['generated']}"


def times_as_fast(ratio: Mapping[str, float]) -> str:
    """How many times as fast a program is whose time is this part of another's."""
    return f"{1 / ratio['value']:.2f} [{1 / ratio['high']:.2f}, {1 / ratio['low']:.2f}]"


def show_ratio(ratio: Mapping[str, float], digits: int = 3) -> str:
    """A ratio with its interval: `1.002 [0.990, 1.013]`."""
    low, value, high = (f"{ratio[key]:.{digits}f}" for key in ("low", "value", "high"))
    return f"{value} [{low}, {high}]"


def _level(records: Sequence[Record]) -> str:
    return f"{records[0]['result']['baseline_again']['ratio']['level']:.0%}"


def _rate(rates: Mapping[str, float], unit: float) -> str:
    return f"{rates['median'] / unit:.1f} ±{rates['spread'] / 2:.0%}"


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 1000 else f"{value:.{3 if value < 1 else 1}f}"


def _megabytes(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:.0f}" if value >= 10e6 else f"{value / 1e6:.1f}"
