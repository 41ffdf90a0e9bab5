"""Tables of what a mask takes out of programs, from records of `inspect` and `account`."""

from collections.abc import Callable, Mapping, Sequence

from sinkjax.accounts.limits import CHIPS, Limit
from sinkjax.distributed import NEURONS
from sinkjax.report import formats
from sinkjax.report.records import Record
from sinkjax.report.table import Table, column, tabulate

_LEAST = 0.01  # of a cache that chips hold alike, to be worth a note


def program_tables(baseline: Sequence[Record], masked: Sequence[Record]) -> list[Table]:
    """A table by path for each executable of two programs that differ in the mask; one of all."""
    pairs = list(zip(baseline, masked, strict=True))
    return [*(_cost_table(*pair) for pair in pairs), _executable_table(pairs)]


def _cost_table(baseline: Record, masked: Record) -> Table:
    ways = {
        "baseline": baseline["compiled"],
        "mask": masked["compiled"],
        "formula": masked["by_hand"],
    }
    rows = []
    for row in masked["compiled"]:
        if any(any(costs[row].values()) for costs in ways.values()):
            rows += _named(row, {way: _cells(costs[row]) for way, costs in ways.items()})
    saved = {
        "mask": _saved(baseline["compiled"]["total"], masked["compiled"]["total"]),
        "formula": _saved(baseline["by_hand"]["total"], masked["by_hand"]["total"]),
    }
    rows += _named("saved", saved)
    return Table(
        title=f"{masked['name']}, {masked['batch_size']} x, {masked['dtype']}, "
        f"cache for {formats.count(masked['max_length'])} tokens, attention: {masked['attention']}",
        columns=("path", "program", "FLOPs", "bytes", "parameters", "cache"),
        rows=rows,
        notes=(
            "Bytes: parameters and cache, which a run has to move at least.",
            _agreement(masked),
            *_kernel(masked),
            *_uncounted(baseline, masked),
        ),
        labels=2,
    )


def _named(name: str, cells: Mapping[str, list[str]]) -> list[list[str]]:
    """Rows for each way, the name before the first."""
    return [[name if i == 0 else "", way, *row] for i, (way, row) in enumerate(cells.items())]


def _amounts(cost: Mapping[str, int]) -> tuple[int, ...]:
    """FLOPs and bytes, and the parameters and the cache that these bytes are."""
    parameters, cache = cost["parameters"], cost["cache"]
    return cost["operations"], parameters + cache, parameters, cache


def _cells(cost: Mapping[str, int]) -> list[str]:
    flops, *sizes = _amounts(cost)
    return [formats.scaled(flops), *map(formats.size, sizes)]


def _saved(whole: Mapping[str, int], part: Mapping[str, int]) -> list[str]:
    """The share of each amount that is gone."""
    pairs = zip(_amounts(part), _amounts(whole), strict=True)
    return [formats.percent(1 - less / more, 2) for less, more in pairs]


def _agreement(record: Record) -> str:
    """Says that compiled costs and formulas are the same, or where they differ most."""
    differences = {
        f"{row}, {column}": abs(cost - formula) / max(cost, formula)
        for row, costs in record["compiled"].items()
        for column, cost in costs.items()
        if cost != (formula := record["by_hand"][row][column])
    }
    in_total = max((share for name, share in differences.items() if "total" in name), default=0)
    if not differences:
        return "The mask's compiled costs are the formulas', to the FLOP and to the byte."
    where = max(differences, key=differences.get)
    total = formats.percent(in_total, 2) if in_total else "nothing"
    return (
        f"The mask's compiled costs differ from the formulas' by {total} in total, and at most by "
        f"{formats.percent(differences[where], 2)} ({where})."
    )


def _kernel(record: Record) -> list[str]:
    """Says how a kernel's FLOPs were counted."""
    flops, needed = (record["kernel"][name] for name in ("operations", "needed"))
    if not flops:
        return []
    return [
        f"Of the mask's FLOPs {formats.scaled(flops)} are counted from the blocks that the "
        f"kernel {record['attention']} computes, not read from XLA; the pairs in them that the "
        f"mask asks for need {formats.scaled(needed)}."
    ]


def _uncounted(*records: Record) -> list[str]:
    names = ", ".join(sorted({name for record in records for name in record["uncounted"]}))
    return [f"Not counted, since XLA does not say what they do: {names}"] if names else []


def _executable_table(pairs: Sequence[tuple[Record, Record]]) -> Table:
    """XLA's figures of each executable, and its compile time."""
    items = [
        {**record, "name": f"{record['name']}, {who}"}
        for pair in pairs
        for who, record in zip(("baseline", "mask"), pair, strict=True)
    ]
    together = sum(item["lowering_seconds"] + item["compile_seconds"] for item in items)
    return tabulate(
        f"{len(items)} executables for {items[0]['device']}, made in {formats.seconds(together)}",
        items,
        [
            column("", "name", str),
            column("lowered", "lowering_seconds", formats.seconds),
            column("compiled", "compile_seconds", formats.seconds),
            column("arguments", "memory.arguments", formats.size),
            column("in place", "memory.aliased", formats.size),
            column("temporary", "memory.temporary", formats.size),
            column("peak", "memory.peak", formats.size),
            column("FLOPs,\nby XLA", "xla.operations", _or_dash(formats.scaled)),
            column("bytes read\nand written", "xla.bytes", _or_dash(formats.size)),
        ],
        (
            "Arguments and peak with the padding of the platform. XLA counts elementwise work, "
            "too, and a loop's body once; where there is a -, it does not count.",
            *_fitting([record for pair in pairs for record in pair]),
        ),
    )


def chip_tables(baseline: Sequence[Record], masked: Sequence[Record]) -> list[Table]:
    """What each chip of a mesh has and does, of two programs that differ in the mask."""
    first, who = masked[0], ("baseline", "mask")
    mesh = ",".join(f"{axis}:{size}" for axis, size in first["mesh"].items())
    rows = []
    for pair in zip(baseline, masked, strict=True):
        rows += [
            [
                f"{record['name']}, {name}",
                *(formats.size(record[of]) for of in ("parameters", "cache")),
                *(formats.size(record["memory"][of]) for of in ("temporary", "peak")),
                formats.scaled(record["operations"]),
            ]
            for name, record in zip(who, pair, strict=True)
        ]
        for name, costs in {
            "saved on a chip": pair,
            "saved, nominal": [record["nominal"] for record in pair],
        }.items():
            flops, _, parameters, cache = _saved(*costs)
            rows.append([name, parameters, cache, "", "", flops])
    notes = [
        "Nominal: what the mask saves by formula where all heads are on one chip. A chip saves as "
        "much where every layer's heads come out alike on all chips; less, or takes more than "
        "without a mask, where not."
    ]
    if first["by_rows"]:
        notes.append(
            f"In {len(first['by_rows'])} layers of the mask heads do not come out alike: its chips "
            "divide rows there, and each holds all of attention's weights. mask.balanced divides "
            "heads."
        )
    if first["by_sub"]:
        notes.append(
            f"In {len(first['by_sub'])} layers of the mask chips along sub divide rows in the "
            "place of query heads, and each holds all of these heads' weights."
        )
    if NEURONS in first["mesh"]:
        notes.append(f"Over {NEURONS} attention divides rows, not heads: any mask is even.")
    notes += _fitting([*baseline, *masked])
    programs = list(zip(who, (baseline[0], first), strict=True))
    for name, record in programs:
        if record["whole"]:
            notes.append(f"Whole on every chip, {name}: {_largest(record['whole'])}.")
    alike = [(name, axis, _largest(of)) for name, r in programs for axis, of in r["alike"].items()]
    alike += [
        (name, axis, f"{formats.size(size)} of the cache")
        for name, record in programs
        for axis, size in record["cache_whole"].items()
        if size > _LEAST * record["cache"]
    ]
    for name, axis, what in alike:
        if what:
            chips = first["mesh"][axis]
            notes.append(f"Alike on the {chips} chips along {axis}, {name}: {what}.")
    return [
        Table(
            title=f"a chip of {mesh} on {first['device']}, {first['batch_size']} x, "
            f"{first['dtype']}, cache for {formats.count(first['max_length'])} tokens",
            columns=("", "parameters", "cache", "temporary", "peak", "FLOPs"),
            rows=rows,
            notes=tuple(notes),
        ),
        _exchange_table(baseline, masked),
    ]


def _fitting(records: Sequence[Record]) -> list[str]:
    """Says whether the programs fit their chip, and by how much not, where its memory is known."""
    name = ":".join(records[0]["target"].split(":")[:2])
    if name not in CHIPS:
        return []
    peaks = {f"{r['name']} of the {r['program']}": r["memory"]["peak"] for r in records}
    memory, largest = CHIPS[name].memory, max(peaks, key=peaks.get)
    over = [f"{which} by {formats.size(n - memory)}" for which, n in peaks.items() if n > memory]
    if over:
        return [f"{name}, of {formats.size(memory)}, is too small for {', '.join(over)}."]
    share = formats.percent(peaks[largest] / memory)
    return [
        f"{name} has {formats.size(memory)}, of which {largest} takes {share}, the most: they fit."
    ]


def _exchange_table(baseline: Sequence[Record], masked: Sequence[Record]) -> Table:
    """What chips exchange, by place and kind."""
    rows = []
    for pair in zip(baseline, masked, strict=True):
        for who, record in zip(("baseline", "mask"), pair, strict=True):
            name = f"{record['name']}, {who}"
            for place, kinds in _alike(record["collectives"]).items():
                for kind, of_kind in kinds.items():
                    size = formats.size(of_kind["bytes"])
                    rows.append([name, place, kind, str(of_kind["count"]), size])
                    name = ""
    return Table(
        title="What its chips exchange",
        columns=("", "where", "", "times", "in all"),
        rows=rows,
        notes=(
            "Layers that exchange what an earlier one does are left out; scanned ones are one, "
            "counted once. The rest: embedding and vocabulary. Sampling: all ways to draw a token, "
            "a loop counted once. Sizes are of results on a chip.",
        ),
        labels=3,
    )


def _alike(collectives: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """What is exchanged by place, of equal layers once, under the first one's name."""
    places, seen = {}, []
    for place, kinds in collectives.items():
        if kinds not in seen or not place.startswith("layer_"):
            seen.append(kinds)
            places[place] = kinds
    return places


def _largest(kinds: Mapping[str, int], most: int = 4) -> str:
    """The largest of these kinds of parameters, and the others together."""
    named = [f"{name} {formats.size(size)}" for name, size in list(kinds.items())[:most]]
    rest = sum(list(kinds.values())[most:])
    return ", ".join([*named, *([f"others {formats.size(rest)}"] if rest else [])])


def _or_dash(write: Callable[[float], str]) -> Callable[[float | None], str]:
    """Writes a count of XLA's own, "-" on a platform where it has none."""
    return lambda value: "-" if value is None else write(value)


def account_tables(records: Sequence[Record]) -> list[Table]:
    """Two tables of one chip, from records of `sinkjax account`: a row's costs, and rows that fit.

    The baseline's record comes before those of masks at each length.
    """
    first = records[0]
    marks, baselines = formats.Footnotes(), {}
    costs, rows = [], []
    for record in records:
        is_mask = baselines.setdefault(record["length"], record) is not record
        base, name = baselines[record["length"]], formats.shortened(record["program"], 30)
        if (why := record["by_formula"]) is not None:
            name += f" {marks.mark(f'by formula: {why}')}"
        for stage, needs in record["stages"].items():
            whole, own = base["stages"][stage]["cost"], needs["cost"]
            saved = _saved(whole, own) if is_mask else [""] * 4
            costs.append(
                [
                    f"{stage} {formats.count(record['length'])}",
                    name,
                    formats.scaled(own["operations"]),
                    formats.size(own["parameters"]),
                    formats.size(own["cache"]),
                    formats.size(needs["fixed"] + needs["row"]),
                    *_least(record["target"], own),
                    *(saved[index] for index in (0, 1, 3)),
                ]
            )
        most, of_base = record["largest_batches"], base["largest_batches"]
        cells = [formats.count(record["length"]), name]
        for stage in ("prefill", "decode"):
            cells += [
                formats.size(record["stages"][stage]["row"]),
                formats.count(most[stage]),
                formats.count(most[stage] * record["length"]),
                formats.ratio(most[stage] / of_base[stage]) if is_mask and of_base[stage] else "",
            ]
        rows.append(cells)
    where = f"{first['model']} in {first['dtype']} on {first['target']}"
    counted = {target for record in records for target in record["uncounted"]}
    return [
        Table(
            title=f"{where}, one row: computed, not measured",
            columns=(
                *("", "program", "FLOPs", "parameters", "cache", "memory\nin all"),
                *("ms at\nleast", "FLOPs\nsaved", "bytes\nsaved", "cache\nsaved"),
            ),
            rows=costs,
            notes=(
                "Bytes: parameters and cache. ms at least: by the chip's published rates, the "
                "longer of FLOPs and bytes.",
                *marks.lines(),
                *([f"Not counted: {', '.join(sorted(counted))}"] if counted else []),
            ),
            labels=2,
        ),
        Table(
            title=f"{where}: rows that fit in {formats.size(first['memory'])}",
            columns=(
                *("tokens\na row", "program"),
                *("at once,\na row", "rows", "tokens\nin all", "times"),
                *("decoding,\na row", "rows", "tokens\nin all", "times"),
            ),
            rows=rows,
            notes=(
                "At once: prompts of all rows together, and then decoding with full caches. "
                "Decoding alone: prompts came before, row by row or in pieces.",
                *marks.lines(),
            ),
            labels=2,
        ),
    ]


def _least(target: str, cost: Mapping[str, int]) -> list[str]:
    """Milliseconds that a chip of published figures needs at least."""
    if target not in CHIPS:
        return ["-"]
    flops, moved, *_ = _amounts(cost)
    return [f"{1000 * CHIPS[target].bound(Limit(flops, moved))[0]:.4g}"]
