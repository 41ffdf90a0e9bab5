"""Pages as data: what the template makes of sections, prose and hostile text."""

import html
import re

from sinkjax.report.appendix import what_was_run
from sinkjax.report.page import Card, Page, Prose, Section, explanations, render_page
from sinkjax.report.table import Table

HOSTILE = "<script>alert(1)</script> {{ 7 * 7 }} {level} \"'&"
TABLE = Table(title=HOSTILE, columns=("a", HOSTILE), rows=[(HOSTILE, "1")], notes=(HOSTILE,))


def headings(text):
    return re.findall(r'<section id="([^"]+)">\s*<(h\d)>([^<]*)</h\d>', text)


def test_sections_are_numbered_nested_and_in_the_contents():
    inner = Section("Inner", sections=[Section("Innermost")])
    page = Page("s", "T", "L", (), [Section("First"), Section("Second", [], [inner, inner])])
    text, pictures = render_page(page)
    assert headings(text) == [
        ("section-1", "h2", "First"),
        ("section-2", "h2", "Second"),
        ("section-2-1", "h3", "Inner"),
        ("section-2-1-1", "h4", "Innermost"),
        ("section-2-2", "h3", "Inner"),
        ("section-2-2-1", "h4", "Innermost"),
    ]
    links = re.findall(r'<a href="#([^"]+)">([^<]*)</a>', text)
    assert links == [(name, title) for name, _, title in headings(text)]
    assert not pictures


def test_data_is_text_wherever_it_stands():
    card = Card(HOSTILE, [HOSTILE], HOSTILE)
    explained = explanations("sinkjax.studies.sweep").order(HOSTILE, folded=False)
    section = Section(HOSTILE, [Prose(HOSTILE), Prose(explained), TABLE])
    text, _ = render_page(Page(HOSTILE, HOSTILE, HOSTILE, [card], [section]))
    assert "<script" not in text
    assert html.unescape(text).count(HOSTILE) == 16
    assert re.search(r'<p class="note">Figures .* &lt;script&gt;', text)


def test_a_page_of_tables_ends_with_what_was_run():
    source = {"name": "a.txt", "sha256": "1" * 64, "role": "text"}
    specification = {
        "experiment": "copies",
        "model": {"name": HOSTILE, "model_digest": "2" * 64, "dtype": "float32"},
        "chosen_on": source,
        "judged": [{**source, "sha256": "3" * 64, "tokens_sha256": "4" * 64}],
        "length": 1024,
        "train": {"steps": 7, "rates": {"first": 0.5, "last": None}},
        "paths": ["sink(mean)", "window(4,8)"],
    }
    records = [{"environment": {"jax": "9.9"}}, {"environment": {"jax": "9.10"}}]
    sections = (Section("Found", [TABLE]), what_was_run(specification, records))
    page = Page("copies", "T", "L", openings=(), sections=sections)
    found, run = page.sections
    assert found.blocks == [TABLE]
    _, models, texts, settings, environments = run.blocks
    assert models.columns == ("", HOSTILE)
    assert texts.rows == tuple(
        ("a.txt", "a text, cut into excerpts at seeded places", "1,024", digit * 64)
        for digit in "13"
    )
    assert settings.rows == (
        ("length", "1024"),
        ("train.steps", "7"),
        ("train.rates.first", "0.5"),
        ("train.rates.last", "none"),
        ("paths", "sink(mean), window(4,8)"),
    )
    assert environments.rows == (("jax", "9.10", "9.9"),)
    assert "<script" not in render_page(page)[0]
