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

OVERVIEW = "Model by model: what held and what did not"
CHOICES = "At 2,048 tokens: other choices, model by model"

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
    (own,) = (part for part in parts if part.startswith(f"{heading}\n"))
    return own


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


def judged(quality, words):
    """The entries, one a text, of the mask or of the control that a table's words name."""
    for control, ways in CONTROLS.items():
        if control in words:
            return quality["controls"][ways["all on" in words]]
    return quality["quality"]


def of_text(entries, name):
    """The entry of the text whose name begins as a table has it."""
    own = name.startswith(("there", "other excerpts of the text to choose on"))
    return next(entry for entry in entries if entry["text"].startswith("prose" if own else name))


def estimate(entry, part):
    """A KL with its interval, or with the least and the most of several draws."""
    kl = entry[part].get("mean", entry[part])
    each = kl.get("each", (kl["low"], kl["high"]))
    return kl["value"], min(each), max(each)


@pytest.mark.parametrize("name", MASKS)
def test_tables_of_kl(name):
    quality, checked = MASKS[name].quality, 0
    for header, rows in tables(FINDINGS, SECTIONS[name]):
        for text, *cells in rows if header[0] == "KL" else ():
            for column, cell in zip(header[1:], cells, strict=True):
                entries = judged(quality, f"{text} {column}")
                part = PARTS.get(column.rpartition(": ")[2], "kl_generated")
                assert says(cell, *estimate(of_text(entries, text), part)), (text, column)
                checked += 1
    # Qwen's controls stand in a table of their own, below.
    assert checked > (10 if name.startswith("qwen") else 30)


def test_the_table_of_other_choices():
    ((header, rows),) = tables(FINDINGS, CHOICES)
    assert len(rows) == 6
    for model, name in (("SmolLM2", "smollm2-135m-2048"), ("Qwen", "qwen2.5-coder-0.5b-2048")):
        heads, size = facts(name)["heads on windows"]
        assert f"{heads} of {size}" in rows[0][0]
        for part in ("mean", "late", "generated"):
            column = header.index(f"{model}: {part}")
            for row in rows:
                entry = of_text(judged(MASKS[name].quality, row[0]), "there")
                assert says(row[column], *estimate(entry, PARTS[part])), (row[0], header[column])


@pytest.mark.parametrize("name", MASKS)
def test_tables_of_times(name):
    timed = {(of["stage"], of["batch_size"]): of for of in MASKS[name].quality.get("timing", ())}
    for header, rows in tables(FINDINGS, SECTIONS[name]):
        for what, *_, faster, limit in rows if timed and "limit saved" in header else ():
            of = timed.pop(("prefill" if "prefill" in what else "decode", int(what.split()[-2])))
            assert says(faster, *(1 / of["ratio"][part] for part in ("value", "high", "low"))), what
            # A decode step's limit is its bytes, a prefill's its FLOPs or the bytes of a short one.
            binding = ("flops", "bytes") if of["stage"] == "prefill" else ("bytes",)
            assert any(says(limit, 100 * (1 - of[part])) for part in binding), what
    assert not timed


def test_rises_of_answers_at_8000():
    name = "smollm2-135m-8000"
    text = " ".join(section(FINDINGS, SECTIONS[name]).split())
    for answers in MASKS[name].quality["retrieval"]:
        for asked in answers["asked"] if answers["kept"] else ():
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
    }


@pytest.mark.parametrize(
    ("page", "heading", "count"),
    [
        (FINDINGS, "The masks in `configs/masks/`", len(MASKS)),
        ("README.md", "A mask to a budget", 4),
    ],
)
def test_tables_of_all_masks(page, heading, count):
    (header, rows), *_ = tables(page, heading)
    assert len(rows) == count
    for row in rows:
        name, said = re.search("`(.+?)`", row[0])[1], dict(zip(header, row, strict=True))
        known = facts(name)
        wrong = [column for column in known.keys() & said if not says(said[column], *known[column])]
        assert wrong == [], name
        promised = [of for of in MASKS[name].quality.get("retrieval", ()) if of["kept"]]
        lost, asked = (sum(of[key] for of in promised) for key in ("lost", "num_questions"))
        assert said["answers lost"].startswith(f"{lost} of {asked}" if promised else "")
        if faster := said.get("prefill, decode: times as fast"):
            of_one = [
                row[2].split()[0]
                for head, of in tables(FINDINGS, SECTIONS[name])
                for row in of
                if "limit saved" in head and row[0].endswith("1 row")
            ]
            assert faster == ", ".join(of_one), name


def test_the_table_over_texts():
    (rows,) = (
        of for header, of in tables(FINDINGS, "The masks in `configs/masks/`") if "texts" in header
    )
    assert len(rows) == len(MASKS)
    for name, number, *cells in rows:
        over = MASKS[name.strip("`")].quality["texts"]
        assert says(number, over["num_texts"])
        for part, cell in zip(("mean", "kl_late", "kl_generated"), cells, strict=True):
            assert says(cell, *estimate(over, part)), (name, part)


def test_the_overview_of_masks():
    qwen, small = "qwen2.5-coder-0.5b-2048", "smollm2-135m"
    known = {name.removeprefix(f"{small}-"): numbers(name) for name in MASKS}
    share = lambda name: "{share:.0f}% and {cache:.0f}%".format(**known[name])  # noqa: E731
    rows = {row[0]: row[1:] for _, of in tables(FINDINGS, OVERVIEW) for row in of}
    (windows,) = (row for name, row in rows.items() if "Windows to a KL budget" in name)
    for length in (512, 2048, 8000):
        assert f"{share(str(length))} at {length:,}" in windows[0]
    assert f"[{share(qwen)}]" in windows[2]
    (sinks,) = (row for name, row in rows.items() if name.startswith("Sinks to a KL of 0.05"))
    assert sinks[0] == "{} and {} of 270 heads".format(
        *(known[name]["heads"] for name in ("10-sinks", "24"))
    )
    (badly,) = (row for name, row in rows.items() if "chooses heads for windows badly" in name)
    for name, cell in ((f"{small}-2048", badly[0]), (qwen, badly[2])):
        quality = MASKS[name].quality
        ways = [quality["quality"]]
        ways += [quality["controls"][way] for way in ("random, as chosen", "sink score")]
        costs = [estimate(of_text(entries, "there"), "kl")[0] for entries in ways]
        assert says(", ".join(re.findall(r"0\.\d+", cell)), *costs), name
    (kept,) = (row for name, row in rows.items() if "Retrieval" in name)
    for name in ("512", "2048", "8000"):
        assert f"0 of {known[name]['asked']} at up to" in kept[0]
    assert f"0 of {known[qwen]['asked']} at up to" in kept[2]


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


@pytest.mark.parametrize(
    ("name", "cells"),
    [("smollm2-135m-512", 6), ("smollm2-135m-2048", 9), ("qwen2.5-coder-0.5b-2048", 9)],
)
def test_tables_of_answers(name, cells):
    sets = [of for answers in MASKS[name].quality["retrieval"] for of in answers["asked"]]
    asked = {(of["task"], of["length"], of["depth"]): of for of in sets}
    label, checked = "", 0
    for header, rows in tables(FINDINGS, SECTIONS[name]):
        for row in rows if "50%" in header else ():
            label = row[0] or label
            if "random" in label:  # whose answers are in no file
                continue
            tokens = label.removesuffix(" tokens").replace(",", "")
            length = int(tokens) if tokens.isdigit() else max(MASKS[name].provenance.lengths)
            task = "niah_prose" if tokens.isdigit() else row[1].strip("`")
            for depth, cell in zip((0.1, 0.5, 0.9), row[-3:], strict=True):
                of = asked[task, length, depth]
                right = [100 * of["accuracy"][who] for who in ("baseline", "candidate")]
                rise = [of["nll_rise"][part] for part in ("value", "low", "high")]
                assert says(cell, *(right if "%" in cell else ()), *rise), (label, depth)
                checked += 1
    assert checked == cells


SENTENCES = {
    "smollm2-135m-512": (
        "{whole} of the 90 key/value groups have no full head, and {cache}% of the cache is saved",
        "({on_64} see 64 recent tokens, {on_128} see 128, {on_256} see 256)",
        "{prefill}% of a prefill's FLOPs, {step}% of a decode step's, and {read}% of a step's "
        "bytes",
        "No answer of {asked} is lost",
        "in generated text its heads cost {least} to {most} times as much",
    ),
    "smollm2-135m-2048": (
        "{cache}% of the cache is saved and, by formula, {prefill}% of a prefill's FLOPs and "
        "{step}% of a decode step's",
        "where the mask acts the KL is {acting} times its mean, and at half the length and shorter "
        "it is at most {half}",
        "No answer of {asked} is lost, at each length at most {bound}%",
    ),
    "smollm2-135m-8000": (
        "{heads} of 270 heads, {whole} of the 90 key/value groups, see a window alone in prompts "
        "of up to 8,000 tokens, and {cache}% of the cache is saved, with, by formula, {prefill}% "
        "of a prefill's FLOPs",
        "at 4,000 tokens and fewer it is at most {half_after} late and in generated tokens",
    ),
    "smollm2-135m-24": (
        "{heads} of 270 heads can attend to the first token alone",
        "costs at 12 tokens at most {at_12}, at 6 at most {at_6}, at 3 at most {at_3}",
        "save {prefill}% of a prefill's FLOPs and {read}% of a decode step's bytes, and their "
        "biases make the cache of so few tokens {larger}% larger",
    ),
    "smollm2-135m-10-sinks": ("{heads} of 270 heads can attend to the first token alone",),
    "qwen2.5-coder-0.5b-2048": (
        "{whole} of the 48 key/value groups, {heads} of 336 heads, can see a window alone",
        "By formula {cache}% of the cache is saved, and of one row {prefill}% of a prefill's "
        "FLOPs, {step}% of those of a decode step and {read}% of its bytes",
        "At half the length and shorter it costs at most {half}",
        "Of {asked} answers of `niah_prose`",
        "(at each length at most {bound}% by the upper bound over all depths), and their NLL rises "
        "by at most {rise} nats at any depth",
    ),
}
"""What the section of each mask says outside of its tables, with names of numbers."""


def numbers(name):
    """Numbers of a mask by their names in `SENTENCES`."""
    saved, quality = MASKS[name], MASKS[name].quality
    config = SHAPES[saved.provenance.model]
    paths = [path for layer in saved.mask.heads for path in layer]
    groups = saved.mask.masked.reshape(-1, config.num_heads // config.num_kv_heads)
    shares = {kind: 100 * of for kind, of in quality["over_chips"][0]["saved"].items()}
    answers = [of for of in quality.get("retrieval", ()) if of["kept"]]
    rises = [of["nll_rise"]["value"] for each in answers for of in each["asked"]]
    entries = quality["quality"]
    ratios = [
        of_text(quality["controls"]["sink score"], of["text"])["kl_generated"]["value"]
        / of["kl_generated"]["value"]
        for of in entries
        if len(quality["controls"]["sink score"]) == len(entries)
    ]

    def costs(lengths, *parts, texts=entries):
        values = [
            kl
            for of in texts
            for length, by_part in of["shorter"].items()
            for part, kl in by_part.items()
            if int(length) in lengths and (not parts or part in parts)
        ]
        return max(values, default=None)

    half = range(max(saved.provenance.lengths) // 2 + 1)
    return {
        "heads": groups.sum(),
        "share": 100 * groups.mean(),
        "whole": groups.all(axis=1).sum(),
        **{f"on_{path.recent}": paths.count(path) for path in paths if path.kind == "window"},
        **dict(zip(("prefill", "step", "read", "cache"), shares.values(), strict=True)),
        "larger": -shares["cache_bytes"],
        "asked": sum(of["num_questions"] for of in answers),
        "bound": max((100 * of["lost_at_most"] for of in answers), default=None),
        "rise": max(rises, default=None),
        "acting": estimate(entries[0], "kl_acting")[0] / estimate(entries[0], "kl")[0],
        "half": costs(half),
        "half_after": costs(half, "kl_late", "kl_generated"),
        **{f"at_{n}": costs([n], texts=entries[1:]) for n in (12, 6, 3)},
        "least": min(ratios, default=None),
        "most": max(ratios, default=None),
    }


@pytest.mark.parametrize(("name", "sentence"), [(n, s) for n in SENTENCES for s in SENTENCES[n]])
def test_sentences(name, sentence):
    text = " ".join(section(FINDINGS, SECTIONS[name]).replace("*", "").split())
    pattern = re.sub(r"\\{\w+\\}", r"(\\d+(?:\\.\\d+)?)", re.escape(sentence))
    (found,) = re.finditer(pattern, text)
    known = numbers(name)
    assert says(" ".join(found.groups()), *(known[key] for key in re.findall(r"{(\w+)}", sentence)))
