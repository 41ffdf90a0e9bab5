"""Numbers of shipped masks in the documents are those of the masks' files, as they are rounded."""

import re

import pytest
from scripts import ROOT

import sinkjax
from sinkjax import shipped
from sinkjax.accounts.savings import Workload, saved_over_chips
from sinkjax.models.shapes import SHAPES
from tests.test_docs import prose

pytestmark = pytest.mark.quick

FINDINGS = "docs/findings.md"
SECTIONS = {
    "smollm2-135m-512": "At 512 tokens, with the answers",
    "smollm2-135m-2048": "At 2,048 tokens: windows that grow with the prompt",
    "smollm2-135m-8000": "At 8,000 tokens: as far back as the model finds things",
    "smollm2-135m-24": "At 24 tokens: the first token alone",
    "smollm2-135m-10-sinks": "A plan for prompts of 2 to 10 tokens",
    "qwen2.5-coder-0.5b-2048": "Qwen at 2,048 tokens: both promises",
}
"""The section of the findings that each mask has."""

PARTS = {
    "mean": "kl",
    "where it acts": "kl_acting",
    "late": "kl_late",
    "last quarter": "kl_late",
    "generated": "kl_generated",
    "next token": "kl_generated",
    "last position": "kl_last",
}
CONTROLS = {
    "own error": ("own error", "own error"),
    "sink score": ("sink score", "sink score, widest"),
    "at random": ("random, as chosen", "random, on the widest path"),
}
"""Each control by its name in tables: on the mask's own paths, and all on the widest."""

MASKS = {
    name: sinkjax.load_mask(f"configs/masks/{name}.json")
    for name in shipped.names("masks", ".json")
}


def section(page, heading):
    parts = re.split(r"^#+ ", prose(ROOT / page), flags=re.M)
    (found,) = (part for part in parts if part.startswith(f"{heading}\n"))
    return found


def tables(page, heading):
    """The tables under a heading: of each the header and the rows."""
    for table in re.findall(r"(?:^\|.*\n)+", section(page, heading), re.M):
        lines = [line.strip("|").split("|") for line in table.splitlines()]
        header, _, *rows = [[cell.strip() for cell in line] for line in lines]
        yield header, rows


def says(cell, *values):
    """Whether the numbers in a cell are these, each rounded to as many places."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", cell.replace("+", ""))
    places = [len(number.partition(".")[2]) for number in numbers]
    return numbers == [f"{value:.{n}f}" for n, value in zip(places, values, strict=True)]


def of_text(entries, name):
    """The entry of the text whose name begins as a table has it."""
    own = name.startswith(("there", "other excerpts of the text to choose on"))
    return next(entry for entry in entries if entry["text"].startswith("prose" if own else name))


def estimate(entry, part):
    """A KL with its interval, or with the least and the most of several draws."""
    found = entry[part].get("mean", entry[part])
    each = found.get("each", (found["low"], found["high"]))
    return found["value"], min(each), max(each)


@pytest.mark.parametrize("name", MASKS)
def test_tables_of_kl(name):
    quality, checked = MASKS[name].quality, 0
    for header, rows in tables(FINDINGS, SECTIONS[name]):
        for text, *cells in rows if header[0] == "KL" else ():
            for column, cell in zip(header[1:], cells, strict=True):
                words, entries = f"{text} {column}", quality["quality"]
                for control, ways in CONTROLS.items():
                    if control in words:
                        entries = quality["controls"][ways["all on" in words]]
                part = PARTS.get(column.rpartition(": ")[2], "kl_generated")
                assert says(cell, *estimate(of_text(entries, text), part)), (text, column)
                checked += 1
    assert checked > 30


@pytest.mark.parametrize("name", MASKS)
def test_tables_of_times(name):
    timed = {(of["stage"], of["batch_size"]): of for of in MASKS[name].quality.get("timing", ())}
    for header, rows in tables(FINDINGS, SECTIONS[name]):
        for what, *_, faster, limit in rows if timed and "limit saved" in header else ():
            of = timed.pop(("prefill" if "prefill" in what else "decode", int(what.split()[-2])))
            assert says(faster, *(1 / of["ratio"][part] for part in ("value", "high", "low"))), what
            # A decode step's limit is its bytes; a prefill's its FLOPs, or the bytes of a short one.
            binding = ("flops", "bytes") if of["stage"] == "prefill" else ("bytes",)
            assert any(says(limit, 100 * (1 - of[part])) for part in binding), what
    assert not timed


@pytest.mark.parametrize(
    ("name", "lengths"), [("512", [512]), ("2048", [2048, 1024, 512]), ("8000", [4000, 2000])]
)
def test_rises_of_answers(name, lengths):
    text = " ".join(section(FINDINGS, SECTIONS[f"smollm2-135m-{name}"]).replace("+", "").split())
    for answers in MASKS[f"smollm2-135m-{name}"].quality["retrieval"]:
        for asked in answers["asked"] if answers["length"] in lengths else ():
            value, low, high = (
                f"{asked['nll_rise'][part]:.2f}" for part in ("value", "low", "high")
            )
            assert f"{value} [{low}, {high}]" in text


def facts(name):
    """What tables of all masks may have of one, by column."""
    saved, quality = MASKS[name], MASKS[name].quality
    worst = max(
        quality["quality"],
        key=lambda of: max(estimate(of, part)[0] for part in ("kl", "kl_late", "kl_generated")),
    )
    random = quality["controls"][
        "random, as chosen"
    ]  # of that text or, where it was not judged, one
    same = [of for of in random if of["text"] == worst["text"]] or random
    config = SHAPES[saved.provenance.model]
    groups = saved.mask.masked.reshape(-1, config.num_heads // config.num_kv_heads)
    cache = 100 * quality["over_chips"][0]["saved"]["cache_bytes"]
    times = [1 / of["ratio"]["value"] for of in quality.get("timing", ())]
    heads = [groups.sum(), groups.size]
    return {
        "heads on windows": heads,
        "masked heads": [*heads[: 1 if groups.size == 270 else 2], 100 * groups.mean()],
        "groups without a full head": [100 * groups.all(axis=1).mean()],
        "cache saved": [cache] if cache > 0 else [],
        "KL: mean": estimate(worst, "kl")[:1],
        "mean KL": estimate(worst, "kl")[:1],
        "late": estimate(worst, "kl_late")[:1],
        "generated": estimate(worst, "kl_generated")[:1],
        "random: mean KL": estimate(same[0], "kl")[:1],
        **({"prefill, decode: times as fast": times[:2]} if times else {}),
    }


@pytest.mark.parametrize(
    ("page", "heading", "count"),
    [
        (FINDINGS, "The masks in `configs/masks/`", len(MASKS)),
        ("README.md", "A mask to a budget", 4),
    ],
)
def test_tables_of_all_masks(page, heading, count):
    ((header, rows),) = tables(page, heading)
    assert len(rows) == count
    for row in rows:
        name, said = re.search("`(.+?)`", row[0])[1], dict(zip(header, row, strict=True))
        known = facts(name)
        wrong = [column for column in known.keys() & said if not says(said[column], *known[column])]
        assert wrong == [], name
        promised = [of for of in MASKS[name].quality.get("retrieval", ()) if of["kept"]]
        lost, asked = (sum(of[key] for of in promised) for key in ("lost", "num_questions"))
        assert said["answers lost"].startswith(f"{lost} of {asked}" if promised else "")


def test_the_table_of_masks_over_chips():
    rows = {
        row[0].strip("`"): row[1:]
        for _, rows in tables("docs/scale.md", "Masks over chips")
        for row in rows
    }
    assert len(rows.keys() & MASKS) == 5
    for name in rows.keys() & MASKS:
        saved = MASKS[name]
        work = Workload(*saved.provenance.lengths)
        one, three = saved_over_chips(SHAPES[saved.provenance.model], saved.mask, work)
        kinds = "decode_operations", "cache_bytes"
        shares = [100 * of["saved"][kind] for kind in kinds for of in (one, three)]
        expected = one["masked"], three["masked"], *shares
        wrong = [cell for cell, of in zip(rows[name], expected, strict=True) if not says(cell, of)]
        assert wrong == [], name
