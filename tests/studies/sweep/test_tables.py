"""The tables against the records that they are made of."""

import copy
import io
import re

import jax.numpy as jnp
import numpy as np
import pytest
import rich.box
import rich.console
import rich.table
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import sinkjax
from sinkjax.masks.definitions import DEFINITIONS
from sinkjax.report import formats
from sinkjax.studies.sweep.cell import summarize_cell
from sinkjax.studies.sweep.findings import best_source_headline, layer_0_headline
from sinkjax.studies.sweep.lengths import summarize_lengths
from sinkjax.studies.sweep.records import arrange
from sinkjax.studies.sweep.tables import conditional_table, later_layers_tables, summary_tables
from sinkjax.studies.sweep.uniform import demands_table, excess_from, uniform_score

MARK = re.compile(r"\(([a-z]{1,2})\)$")


def find(tables, *parts):
    """The one table whose title holds all of these."""
    (table,) = [t for t in tables if all(part in t.title for part in parts)]
    return table


def cells_of(records, source, definition, threshold=0.9):
    cells = [
        record
        for record in records
        if record["kind"] == "cell"
        and record["source"]["name"] == source
        and (record["definition"], record["threshold"]) == (definition, threshold)
    ]
    return sorted(cells, key=lambda record: record["length"])


def number(text):
    """The first number of a cell, shares as fractions."""
    match = re.match(r"[+-]?[\d,.]+", text)
    value = float(match[0].replace(",", ""))
    return value / 100 if text[match.end() :].startswith("%") else value


def interval(text):
    low, high = re.search(r"\[(.+), (.+)\]", text).groups()
    return float(low), float(high)


def column(table, heading):
    (index,) = [
        i for i, name in enumerate(table.columns) if " ".join(name.split()).startswith(heading)
    ]
    return [row[index] for row in table.rows]


def check_whole(tables):
    """No cell is blank or holds what no reader should see, and every mark is explained."""
    for table in tables:
        assert table.rows
        for row in table.rows:
            assert len(row) == len(table.columns)
            for cell in row:
                assert isinstance(cell, str)
                assert cell.strip()
                assert not re.search(r"\b(nan|None|inf)\b", cell)
                if cell.startswith("undefined"):
                    assert MARK.search(cell)
                if mark := MARK.search(cell):
                    (note,) = [note for note in table.notes if note.startswith(mark[0])]
                    assert len(note) > len(mark[0]) + 1


def test_every_cell_is_filled_and_every_mark_explained(sweep):
    tables = summary_tables(*sweep)
    # One for each prompt of the study, two of each of four curves, two over all lengths.
    assert len(tables) == 2 + 2 * 4 + 2
    check_whole(tables)


def test_the_founding_study_stands_beside_this_sweep(sweep):
    _, records = sweep
    hello, sentence = summary_tables(*sweep)[:2]
    assert hello.rows[0][2:6] == ("2", "366/512 (71.48%)", "74.04%", "-")
    assert sentence.rows[0][2:6] == ("24", "117/512 (22.85%)", "26.67%", "-")
    for table, source in (
        (hello, "study: Hello world"),
        (sentence, "study: complex sentence (stand-in)"),
    ):
        assert source.removeprefix("study: ") in table.title
        assert table.rows[0][0] == "Llama-3.2-1B"
        for row, definition in zip(table.rows[1:], ("mean", "mean_excl_first"), strict=True):
            (cell,) = cells_of(records, source, definition)
            assert row[:3] == ("tiny", f"{definition} > 0.9", str(cell["length"]))
            sinks = cell["result"]["sinks"]
            share = 100 * sinks["share"]["value"]
            assert row[3] == f"{sinks['count']['value']:.0f}/48 ({share:.2f}%)"
            conditional = cell["result"]["conditional"][0]
            assert row[7] == str(conditional["n"])
            for text, name in zip(row[4:7], ("given_sink", "base_rate", "lift"), strict=True):
                if conditional[name]["value"] is None:
                    mark = MARK.search(text)[0]
                    assert text == f"undefined {mark}"
                    assert f"{mark} {conditional[name]['undefined']}" in table.notes
                else:
                    assert number(text) == pytest.approx(conditional[name]["value"], abs=0.0051)


def test_undefined_is_said_with_its_reason_and_defined_is_not(sweep):
    _, records = sweep
    table = find(summary_tables(*sweep), "short: layer 0", "mean > 0.9")
    cells = cells_of(records, "short", "mean")
    assert cells[0]["result"]["conditional"][0]["lift"]["value"] is None  # else nothing is tested
    assert cells[1]["result"]["conditional"][0]["lift"]["value"] is not None
    for heading, name in (
        ("P(later | layer 0)", "given_sink"),
        ("base rate", "base_rate"),
        ("P(later | not)", "given_not"),
        ("lift", "lift"),
        ("phi", "phi"),
    ):
        for text, cell in zip(column(table, heading), cells, strict=True):
            value = cell["result"]["conditional"][0][name]
            if value["value"] is None:
                assert f"{MARK.search(text)[0]} {value['undefined']}" in table.notes
            else:
                assert number(text) == pytest.approx(value["value"], abs=0.0051)
    shuffled = column(table, "shuffled lift")
    for text, cell in zip(shuffled, cells, strict=True):
        control = cell["result"]["conditional"][0]["shuffled"]["lift"]
        if control["value"] is not None:
            assert interval(text) == pytest.approx((control["low"], control["high"]), abs=0.0051)
    assert column(table, "n") == [str(c["result"]["conditional"][0]["n"]) for c in cells]


def test_layer_1_alone_stands_beside_the_pooled_lift_or_is_said_to_be_undefined(sweep):
    specification, records = sweep
    tables = [
        table
        for group in arrange(specification, records).groups
        for curve in group.curves
        for table in later_layers_tables(curve)
    ]
    table = find(tables, "short: layer 0 and each later layer", "mean > 0.9")
    cells = cells_of(records, "short", "mean")
    lifts = [cell["result"]["later_layers"] for cell in cells]
    assert lifts[0]["layers"][0]["lift"]["value"] is None  # else nothing is tested
    assert lifts[1]["layers"][0]["lift"]["value"] is not None
    columns = column(table, "lift, layer 1"), column(table, "its lift"), column(table, "best layer")
    for of_first, of_best, layer, later in zip(*columns, lifts, strict=True):
        best = later["best"]
        assert layer == ("none" if best["layer"] is None else str(best["layer"]))
        for text, value in ((of_first, later["layers"][0]["lift"]), (of_best, best["lift"])):
            if value["value"] is None:
                assert f"{MARK.search(text)[0]} {value['undefined']}" in table.notes
            else:
                assert number(text) == pytest.approx(value["value"], abs=0.0051)
    earlier = copy.deepcopy(records)
    for record in earlier:
        record["result"].pop("later_layers", None)
    for group in arrange(specification, earlier).groups:
        assert not any(map(later_layers_tables, group.curves))


CANNOT = "This model cannot be tested"
TOGETHER = "key/value groups stay in place in one of"


@pytest.mark.parametrize(
    ("heads", "groups", "said"),
    [
        (1, 1, f"{CANNOT}: it has one head, "),
        (4, 1, f"{CANNOT}: its 4 heads have only 24 renumberings, "),
        (4, 4, f"{CANNOT}: its 4 heads have only 24 renumberings, "),
        (4, 2, f"{CANNOT}: its 4 heads have only 8 renumberings, "),
        (6, 2, f"The 2 {TOGETHER} 2 renumberings: "),
        (9, 3, f"The 3 {TOGETHER} 6 renumberings: "),
        (8, 4, f"The 4 {TOGETHER} 24 renumberings: "),
        (10, 5, None),
        (5, 1, None),
        (5, 5, None),
    ],
)
def test_what_the_control_cannot_show_is_said(make_sweep, describe, heads, groups, said):
    models = [describe.model("m", 3, heads, groups)]
    sources = [describe.source("a", (4, 8))]
    sweep = make_sweep(models=models, sources=sources, definitions=("mean",), study=False)
    notes = find(summary_tables(*sweep), "layer 0").notes
    listed = [note for note in notes if CANNOT in note or TOGETHER in note]
    assert len(listed) == (said is not None)
    assert said is None or listed[0].startswith(said)
    (group,) = arrange(*sweep).groups
    for headline in (layer_0_headline, best_source_headline):
        assert ("cannot be told" in headline(group.curves)) == (said is not None and CANNOT in said)


@pytest.mark.parametrize(("groups", "differ"), [(1, False), (2, True), (6, False)])
def test_lengths_of_an_earlier_versions_control_are_named(make_sweep, describe, groups, differ):
    """With one key/value head, or as many as heads, it is the same control."""
    specification, records = make_sweep(
        models=[describe.model("m", 3, 6, groups)],
        sources=[describe.source("a", (2, 4, 8))],
        definitions=("mean",),
        study=False,
    )
    for record in (records := copy.deepcopy(records)):
        if record.get("length") in (2, 8):
            del record["result"]["renumbered"]
    (group,) = arrange(specification, records).groups
    (curve,) = group.curves
    notes = [note for note in conditional_table(curve).notes if "single heads" in note]
    assert len(notes) == differ
    assert all(note.startswith("At 2, 8 tokens an earlier version ") for note in notes)


def test_shares_and_counts_with_their_intervals(sweep):
    _, records = sweep
    table = find(summary_tables(*sweep), "prose: heads", "mean_excl_first")
    cells = cells_of(records, "prose", "mean_excl_first")
    (over_lengths,) = [
        record
        for record in records
        if record["kind"] == "lengths"
        and (record["source"]["name"], record["definition"]) == ("prose", "mean_excl_first")
    ]
    assert column(table, "tokens") == ["8", "64", "512"]
    prompts = [text.split()[0] for text in column(table, "prompts")]
    assert prompts == [str(cell["num_prompts"]) for cell in cells]
    for name, heading, scale in (("count", "sink heads", 1), ("share", "share", 100)):
        for text, cell in zip(column(table, heading), cells, strict=True):
            value = cell["result"]["sinks"][name]
            assert number(text) == pytest.approx(value["value"], abs=0.051)
            bounds = (scale * value["low"], scale * value["high"])
            assert interval(text) == pytest.approx(bounds, abs=0.051)
    for text, cell in zip(column(table, "best source layer"), cells, strict=True):
        best = cell["result"]["best_source"]
        if best["layer"] is None:
            assert text.startswith("undefined")
            continue
        assert text.startswith(f"layer {best['layer']}: {best['lift']['value']:.2f}")
        by_chance = best["lift"]["value"] <= best["shuffled_best_lift"]["high"]
        assert bool(MARK.search(text)) == by_chance
    holding = over_lengths["result"]["consistent"]["count_up_to"]
    assert column(table, "sinks at every length so far") == list(map(str, holding))
    assert "[95%]" in table.columns[2]


@pytest.mark.parametrize(("num_prompts", "marked"), [(1, False), (7, True), (8, False)])
def test_intervals_of_few_prompts_are_said_to_be_too_narrow(make_sweep, num_prompts, marked):
    table = find(summary_tables(*make_sweep(num_prompts=num_prompts)), "short: heads with mean >")
    text = f"{num_prompts} (a)" if marked else f"{num_prompts}"
    assert set(column(table, "prompts")) == {text}
    assert any("too narrow" in note for note in table.notes) == marked


def test_heads_that_hold_and_the_steepest_steps(sweep):
    _, records = sweep
    tables = summary_tables(*sweep)
    consistent, change = find(tables, "at every length"), find(tables, "change most")
    for record in records:
        if record["kind"] != "lengths":
            continue
        label = (record["source"]["name"], f"{record['definition']} > 0.9")
        heads = record["result"]["consistent"]["heads"]
        (row,) = [row for row in consistent.rows if tuple(row[:2]) == label]
        assert row[3] == f"{len(heads)} of 48"
        assert row[4] == (", ".join(f"L{layer}H{head}" for layer, head in heads) or "none")
        for what, unit, scale in (("share", "share, pp", 100), ("lift", "lift", 1)):
            expected = record["result"][f"{what}_change"]
            (row,) = [row for row in change.rows if tuple(row[:3]) == (*label, unit)]
            if "undefined" in expected:
                assert f"{MARK.search(row[3])[0]} {expected['undefined']}" in change.notes
                continue
            assert row[3] == f"{expected['from']} to {expected['to']}"
            value = scale * expected["change"]["value"]
            assert number(row[4]) == pytest.approx(value, abs=0.051 if scale > 1 else 0.0051)
            assert number(row[6]) == pytest.approx(expected["support"], abs=0.00051)


def test_main_definition_comes_first(make_sweep):
    sweep = make_sweep(definitions=("last", "mean"), thresholds=(0.5, 0.9), study=False)
    titles = [table.title for table in summary_tables(*sweep)]
    shown = [title.rsplit("with ")[1] for title in titles if "short: heads with" in title]
    assert shown == ["last > 0.5", "last > 0.9", "mean > 0.5", "mean > 0.9"]


def test_a_sweep_that_has_not_ended_says_what_is_missing(sweep):
    specification, records = sweep
    done = [
        record
        for record in records
        if record["kind"] == "cell" and record["length"] not in (24, 512)
    ]
    tables = summary_tables(specification, done)
    check_whole(tables)
    assert "Not measured yet: 24 tokens." in find(tables, "short: heads", "mean > 0.9").notes
    assert not [table for table in tables if "every length" in table.title]


def test_names_that_are_not_unique_are_told_apart(make_sweep, describe):
    sources = [describe.source("a.txt", (4,), digest=digest) for digest in "12"]
    models = [describe.model("llama", digest=digest) for digest in "34"]
    tables = summary_tables(*make_sweep(models=models, sources=sources, definitions=("mean",)))
    titles = [table.title for table in tables]
    assert len(set(titles)) == len(titles)
    for name in ("llama (33333333)", "llama (44444444)", "a.txt (11111111)", "a.txt (22222222)"):
        assert any(name in title for title in titles)


def test_whether_a_bos_was_added_is_said_where_the_policy_leaves_it_open(make_sweep, describe):
    sources = [describe.source("a.txt", (4,))]
    tables = summary_tables(
        *make_sweep(sources=sources, bos=("never", "tokenizer"), definitions=("mean",), study=False)
    )
    assert find(tables, "BOS: never", "layer 0")
    assert find(tables, "BOS: none (the tokenizer adds none)", "layer 0")


def test_tables_fit_a_terminal(make_sweep, describe):
    """110 columns wide, with nothing cut off, at the size of a real model and of its numbers."""
    model = describe.model("smollm2-135m", num_layers=30, num_heads=9, num_kv_heads=3)
    sources = [describe.source("short", (2, 24)), describe.source("text", (512, 2048), "text")]
    tables = summary_tables(*make_sweep(models=[model], sources=sources, num_prompts=100))
    for table in tables:
        shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in table.columns:
            shown.add_column(heading, overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        console = rich.console.Console(file=io.StringIO(), width=110)
        console.print(shown)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= 110
        for cell in {cell for row in table.rows for cell in row[table.labels :]}:
            assert any(cell in line for line in lines), "a value is broken over lines"


@st.composite
def sinks_by_length(draw):
    """bool [P, L, N] at two lengths, with whole layers that have none or nothing but sinks."""
    num_layers, num_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    arrays = []
    for _ in range(2):
        num_prompts = draw(st.integers(1, 3))
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        sinks = rng.random((num_prompts, num_layers, num_heads)) < draw(
            st.sampled_from([0, 0.5, 1])
        )
        sinks[:, draw(st.integers(0, num_layers - 1))] = draw(st.booleans())
        arrays.append(sinks)
    return arrays


@settings(max_examples=40, deadline=None)
@given(sinks_by_length())
def test_no_result_leaves_a_blank(describe, arrays):
    scores = [np.where(sinks, np.float32(0.95), np.float32(0.5)) for sinks in arrays]
    _, num_layers, num_heads = scores[0].shape
    model = describe.model("m", num_layers, num_heads, num_heads)
    source = describe.source("s", (2, 4))
    common = {
        "model": model,
        "source": source,
        "bos": "never",
        "bos_added": False,
        "definition": "mean",
        "threshold": 0.9,
        "environment": {},
    }
    records = [
        {
            "id": str(length),
            "kind": "cell",
            **common,
            "length": length,
            "num_prompts": len(values),
            "result": summarize_cell(values, np.ones_like(values), "mean", 0.9, 0, num_heads),
        }
        for length, values in zip((2, 4), scores, strict=True)
    ]
    over = summarize_lengths((2, 4), scores, (0, 1), "mean", 0.9, 0, 0.9)
    records.append(
        {"id": "l", "kind": "lengths", **common, "lengths": [2, 4], "result": over}
        | {"num_prompts": [len(values) for values in scores]}
    )
    specification = {
        "models": [model],
        "sources": [source],
        "bos": ["never"],
        "definitions": ["mean"],
        "thresholds": [0.9],
    }
    check_whole(summary_tables(specification, records))


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0%"), (1.0, "100.0%"), (0.4734, "47.3%"), (0.0004, "<0.1%"), (0.0006, "0.1%")],
)
def test_a_share_that_is_not_zero_is_not_written_as_zero(share, text):
    assert formats.percent(share) == text


def test_footnotes_are_lettered_once_each():
    notes = formats.Footnotes()
    marks = [notes.mark(f"reason {index}") for index in range(28)]
    assert marks[:2] == ["(a)", "(b)"]
    assert marks[25:] == ["(z)", "(aa)", "(ab)"]
    assert notes.mark("reason 26") == "(aa)"
    assert notes.lines()[27] == "(ab) reason 27"
    assert len(notes.lines()) == 28


@pytest.fixture(scope="module")
def uniform_model():
    """A model that cannot tell keys apart: its queries are zero."""
    config = sinkjax.LlamaConfig(
        vocab_size=11,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=4,
        embed_dim=4,
        mlp_dim=4,
        max_length=64,
        norm_eps=1e-5,
    )
    model = sinkjax.Llama(config, rngs=nnx.Rngs(0))
    query = model.layers[0].attention.q
    query[...] = jnp.zeros_like(query[...])
    return model


@pytest.mark.parametrize("length", [5, 24])
@pytest.mark.parametrize("key_position", [0, 3])
def test_uniform_scores_are_what_is_measured_of_uniform_attention(
    uniform_model, length, key_position
):
    tokens = jnp.zeros((1, length), jnp.int32)
    stats = sinkjax.measure_sinks(uniform_model, tokens, key_positions=(key_position,), tail=4)
    for definition in DEFINITIONS:
        measured = float(stats.score(definition)[0, 0, 0])
        expected = uniform_score(definition, length, key_position, tail=4)
        assert measured == pytest.approx(expected, abs=1e-5), definition


def test_excess_from_other_definitions_is_exact(describe):
    scores = describe.scores(0, 5, 24, describe.model())
    for definition in ("mean", "mean_excl_first"):
        derived = excess_from(scores[definition], definition, 24)
        np.testing.assert_allclose(derived, scores["excess"], atol=1e-6)


def test_what_a_threshold_asks_for():
    """The numbers that the project's notes on the founding study give."""
    rows = {row[0]: row for row in demands_table((2, 24), 0.9).rows}
    assert rows["2"][1:] == ("0.750", "0.500", "0.800", "2.20")
    assert rows["24"][1] == "0.157"
    assert rows["24"][3:] == ("0.896", "5.33")
