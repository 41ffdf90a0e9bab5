"""The card of a mask that is shared: what its file says that it costs, on what, and how to make it.

Nothing is measured for a card, and nothing is said that the mask's file does not.
"""

import json
import os
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sinkjax.errors import printable
from sinkjax.masks.file import Provenance, SavedMask
from sinkjax.masks.mask import SinkMask
from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.table import Table, Text, column, tabulate
from sinkjax.studies.costs import PARTS_NOTE, part_columns
from sinkjax.studies.fields import UNLIKE
from sinkjax.studies.retrieval.promise import promise_line
from sinkjax.studies.search.tables import chips_tables
from sinkjax.studies.timing.tables import times_as_fast


def mask_card(repo_id: str, saved: SavedMask) -> str:
    """The Markdown of a mask's card.

    Args:
      repo_id: `owner/name`, that the mask is loaded from.
    """
    made_from, name = saved.provenance, repo_id.rpartition("/")[2]
    model = _public(made_from.model) if made_from.model else "MODEL"
    lines = [
        *("---", "library_name: sinkjax", "tags:", "- attention-sinks", "- sparse-attention"),
        *("---", "", f"# {name}", ""),
        f"A mask of attention heads for {_code(model)}, by sinkjax: {_paths(saved.mask)}.",
        *("", "```python", "import sinkjax", ""),
        f"model = sinkjax.load({json.dumps(model, ensure_ascii=False)})",
        f'fast = sinkjax.specialize(model, sinkjax.load_mask("hf://{repo_id}"))',
        *("```", "", "## What it costs", ""),
        *_promise(saved.quality, f"hf://{repo_id}", model),
        *("## How it was made", ""),
        *_origin(made_from),
        *("", *_commands(made_from, saved.quality), ""),
    ]
    # Others may have written what the file says: it stays in its line.
    return "\n".join(map(printable, lines))


def _paths(mask: SinkMask) -> str:
    """`250 of 270 heads (30 layers of 9) are masked: 250 window(4,128)`."""
    counts: dict[str, int] = {}
    for path in (path for layer in mask.heads for path in layer if path.kind != "full"):
        text = "copy" if path.kind == "copy" else str(path)
        counts[text] = counts.get(text, 0) + 1
    shape = f"({mask.num_layers} layers of {mask.num_heads})"
    paths = ", ".join(f"{formats.count(count)} {path}" for path, count in counts.items())
    masked, total = formats.masked(mask.counts()).split("/")
    return f"{masked} of {total} heads {shape} are masked: {paths or 'none'}"


def _promise(quality: Mapping[str, Any], name: str, model: str) -> Iterator[str]:
    """What the mask was measured to cost, and its controls."""
    if not quality:
        measure = f"sinkjax quality --model={model} --mask={name}"
        yield from (f"The file says of nothing that was measured; `{measure}` measures.", "")
        return
    try:
        rows, controls = list(_measured(quality)), list(_controls(quality))
        tables = [_table([("text", lambda row, _: row["text"])], rows, _SIZES)] if rows else []
        if controls:
            names = [(key, lambda row, _, key=key: row[key]) for key in ("control", "text")]
            tables.append(_table(names, controls))
        lines = [line for table in tables for line in (*_markdown(table), "")]
        lines += [line for of in quality.get("retrieval", ()) for line in (promise_line(of), "")]
        if "timing" in quality:
            lines += [*_markdown(_times(quality["timing"])), ""]
        for table in chips_tables(quality.get("over_chips", ())):
            lines += [f"{table.title}:", "", *_markdown(table), ""]
        shown = ("quality", "kl", "controls", "timing", "over_chips")
    except UNLIKE:
        lines, shown = [], ()
    yield from lines
    rest = {key: value for key, value in quality.items() if key not in shown}
    if rest:
        yield from ("The file says, too:", "", *_json(rest), "")


def _measured(quality: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of what a search and gates put into a mask's file, as tables of records read them."""
    for row in quality.get("quality", ()):
        yield {**row, "result": row}
    for row in quality.get("kl", ()):
        yield {**row, "result": {**row, "kl": {"mean": row}}}


def _controls(quality: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, texts in quality.get("controls", {}).items():
        for row in texts:
            yield {"control": name, **row, "result": {**row, "kl": {"mean": row["kl"]}}}


def _agreement(row: Mapping[str, Any], notes: Footnotes) -> str:
    if "agreement" not in row:
        return "-"
    return formats.estimate(row["agreement"]["top1"], formats.percent, notes)


_SIZES = (
    column("tokens", "length", formats.count),
    column("excerpts", "num_windows", formats.count),
    ("same likeliest token", _agreement),
)


def _table(
    names: Sequence[tuple[str, Text]],
    rows: Sequence[Mapping[str, Any]],
    sizes: Sequence[tuple[str, Text]] = (),
) -> Table:
    """A table of the KL of masks: the chosen one on each text, or each control."""
    kl = column("KL", "result.kl.mean", formats.nats, formats.estimate)
    notes = (
        "KL (Kullback-Leibler divergence) from the model's predictions to the mask's, in nats a "
        f"token, with 95% intervals; - where the file has none. {PARTS_NOTE}",
    )
    if not sizes:
        notes = ("Controls: as many heads, chosen otherwise.",)
    return tabulate("", rows, [*names, *sizes, kl, *part_columns()], notes)


def _times(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What the mask's programs take, beside the baseline's."""

    def sizes(row: Mapping[str, Any], _: Footnotes) -> str:
        return f"{row['batch_size']} x {formats.count(row['prompt_length'])}"

    return tabulate(
        "",
        rows,
        [
            column("step", "stage", str),
            ("rows x tokens", sizes),
            ("times as fast", lambda row, _: times_as_fast(row["ratio"])),
            *(column(f"{of} of the baseline's", of, formats.percent) for of in _TAKEN),
            column("on", "device", str),
        ],
        ("Times by turns with the baseline's in one process; FLOPs and bytes are computed.",),
    )


_TAKEN = ("flops", "bytes", "cache")


def _markdown(table: Table) -> Iterator[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    yield line([heading.replace("\n", " ") for heading in table.columns])
    yield line(["---"] * len(table.columns))
    yield from map(line, table.rows)
    yield ""
    yield from table.notes


def _origin(made_from: Provenance) -> Iterator[str]:
    """A list of what the mask was made from, as far as the file says."""
    facts = {
        "model": (made_from.model and _public(made_from.model), "digest", made_from.model_digest),
        "tokenizer": (None, "digest", made_from.tokenizer_digest),
        "chosen on": (made_from.text, "sha256", made_from.text_sha256),
        "BOS": (made_from.bos, "", None),
        "tokens": (", ".join(map(formats.count, made_from.lengths)), "", None),
        "definition of a sink": (made_from.definition, "", None),
        "threshold": (made_from.threshold, "", None),
    }
    for name, (value, kind, digest) in facts.items():
        said = [_code(str(value))] if value else []
        said += [f"{kind} {_code(digest)}"] if digest else []
        if said:
            yield f"- {name}: {', '.join(said)}"


def _commands(made_from: Provenance, quality: Mapping[str, Any]) -> Iterator[str]:
    """The commands that make the mask again, or what the file says in place of them."""
    try:
        commands = list(_remake(made_from, quality))
    except UNLIKE:
        commands = []
    if not commands:
        yield "The file names no command. It says of how the heads were chosen:"
        yield from ("", *_json(dict(made_from.selection)))
        return
    yield from ("```sh", *(line for command in commands for line in _shell(*command)), "```")
    unknown = [flag for _, flags in commands for flag, value in flags.items() if value is None]
    if unknown:
        yield ""
        yield f"The file does not say: {', '.join(f'--{flag}' for flag in unknown)}."


def _remake(
    made_from: Provenance, quality: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The commands, each with its flags; None for a flag that was set and is not in the file."""
    how = made_from.selection
    model = {"model": made_from.model and _public(made_from.model)}
    texts = list(dict.fromkeys(row["text"] for row in _measured(quality)))
    judged = {
        "choose_text": made_from.text,
        "judge_text": texts,
        "judge_excerpts": next((row["num_windows"] for row in _measured(quality)), None),
        "lengths": made_from.lengths,
        "bos": made_from.bos,
    }
    match how.get("method", how.get("by")):
        case "KL budget":
            workload, gates = how["workload"], how.get("gates")
            if gates:
                text = gates["chosen_on"]
                yield (
                    "gates",
                    {
                        **model,
                        "choose_text": text["name"],
                        "choose_excerpts": text["num_windows"],
                        "lengths": gates["length"],
                        "bos": made_from.bos,
                        "paths": gates["path"],
                        **{name: gates[name] for name in ("units", "price")},
                        **_training(gates["train"]),
                        **gates.get("asked", {}),
                        "output_dir": "GATES",
                    },
                )
            same = ("objective", "ranking", "tries", "samples", "seed")
            choice = "prune" if "prune" in how else "paths"
            others = [text for text in texts if text != made_from.text]
            ranked, held = how.get("num_windows", (None, None))
            asked = how.get("asked", {})
            questions = ("tasks", "depths", "rank_questions", "hold_questions")
            answers: dict[str, Any] = {}
            if asked:
                answers = {name: asked[name] for name in questions}
                answers["nll_budget"] = asked["searched_nll_budget"]
            yield (
                "search",
                {
                    **model,
                    **judged,
                    "judge_text": others or [""],
                    **{"rank_excerpts": ranked, "hold_excerpts": held},
                    **{"kl_budget": how["kl_budget"], "margin": 0},  # what the margin had left
                    "budget_on": how.get("budget_on", "mean"),
                    "units": how["by"],
                    **{name: how[name] for name in (choice, *same)},
                    "growth_rounds": how["rounds"],
                    **({"chips": how["chips"]} if "chips" in how else {}),
                    **answers,
                    "batch_sizes": workload["batch_size"],
                    "generated": workload["generated"],
                    "flops_per_byte": workload["operations_per_byte"],
                    **({"gates": "GATES"} if gates else {}),
                },
            )
        case "learned gates":
            same = {"paths": how["path"], "shares": how["share"]}
            same |= {name: how[name] for name in ("units", "chips", "price") if name in how}
            same |= {**_training(how["train"]), **how.get("asked", {})}
            yield "gates", {**model, **judged, "choose_excerpts": None, **same}
        case "consistent" | "quantile" as rule:
            rule = {"consistent": "min_share"}.get(rule, rule)
            yield (
                "mask",
                {
                    "results": None,
                    **model,
                    "source": made_from.text,
                    **{name: judged[name] for name in ("lengths", "bos")},
                    "definitions": made_from.definition,
                    "thresholds": made_from.threshold,
                    **{rule: how[rule], "units": how["unit"], "paths": how["path"]},
                },
            )
        case "published":
            named = {"thresholds": "threshold", "quantile": "quantile", "shares": "share"}
            rules = {flag: how[name] for flag, name in named.items() if name in how}
            window = {"paths": how["path"]} if "path" in how else {}
            lengths = {"lengths": made_from.lengths}
            yield "mask", {"from_folder": how["folder"], **model, **rules, **window, **lengths}


def _training(train: Mapping[str, Any]) -> dict[str, Any]:
    """How gates were trained, by the names of today's flags."""
    return {("warmup_share" if name == "warmup" else name): train[name] for name in train}


def _json(fields: Mapping[str, Any]) -> list[str]:
    return ["```json", *json.dumps(fields, indent=2).split("\n"), "```"]


def _shell(command: str, flags: Mapping[str, Any]) -> list[str]:
    texts = [f"sinkjax {command}"]
    for flag, value in flags.items():
        if flag == "judge_text":  # given once for each
            texts += [f"--{flag}={text}" for text in value]
        elif value not in (None, (), []):
            several = isinstance(value, list | tuple)
            text = ",".join(map(str, value)) if several else str(value)
            texts.append(f"--{flag}={text}")
    lines = [texts[0], *(f"  {shlex.quote(text)}" for text in texts[1:])]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _public(name: str) -> str:
    """A model's name as others can use it: of a folder or a file here, the last part."""
    return pathlib.PurePath(name).name if os.path.isabs(name) else name


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"
