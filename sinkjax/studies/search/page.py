"""The page of a search."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.report.appendix import page_of_tables
from sinkjax.report.page import Page
from sinkjax.report.records import Record
from sinkjax.studies.search.tables import search_tables


def page(specification: Mapping[str, Any], records: Sequence[Record]) -> Page:
    """The page of a search."""
    return page_of_tables(
        "search",
        title=f"A mask of {specification['model']['name']} within a KL budget",
        lede="Which mask saves most within a KL budget, and what it costs on text that the search "
        "never saw, beside masks of as many heads.",
        tables=search_tables(records),
        specification=specification,
        records=records,
    )
