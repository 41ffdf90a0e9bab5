"""The report of a quality run: drawn comparisons, and the real summaries of them."""

import random

from runs import report_of

from sinkjax.studies.quality.study import Quality
from sinkjax.studies.quality.tables import quality_tables


def test_the_page_has_every_table_a_figure_for_each_question_and_says_what_it_costs(
    quality_run, quality_report
):
    page = quality_report.read_text()
    figures = sorted(path.name for path in (quality_report.parent / "figures").iterdir())
    assert [name.split("-")[0] for name in figures] == ["continuations", "cost", "positions"]
    for table in quality_tables(quality_run[1]):
        assert f"<figcaption>{table.title}</figcaption>" in page
        for row in table.rows:
            for cell in row:
                assert cell.replace("<", "&lt;").replace(">", "&gt;") in page, cell
    assert "none &lt;b&gt;.json masks 24 of 48 heads. At" in page
    assert page.index("some.json masks") < page.index("plan.json masks")  # the cheapest first
    assert "beyond 24 tokens all tokens are prefilled again with the next mask" in page
    assert "no scored position has a next token" in page  # of two tokens
    assert "Some processor" in page


def test_the_order_of_records_changes_nothing(quality_run, quality_report, save_sweep, tmp_path):
    specification, records = quality_run
    shuffled = random.Random(0).sample(records, len(records))
    again = report_of(Quality, save_sweep(tmp_path, specification, shuffled))
    assert again.read_bytes() == quality_report.read_bytes()


def test_many_masks_are_shown_some_a_figure_and_one_excerpt_has_no_interval(
    make_quality_run, save_sweep, tmp_path
):
    costs = {f"mask-{n}.json": 0.01 * n for n in range(7)}
    specification, records = make_quality_run(costs, excerpts=1)
    report = report_of(Quality, save_sweep(tmp_path, specification, records))
    names = [path.name for path in (tmp_path / "figures").iterdir()]
    assert len([name for name in names if name.startswith("cost")]) == 2
    assert "a sample of one: no interval" in report.read_text()
