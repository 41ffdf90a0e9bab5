"""The page of a run of copies."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.report.appendix import page_of_tables
from sinkjax.report.page import Page
from sinkjax.report.records import Record
from sinkjax.studies.copies.tables import copying_tables


def page(specification: Mapping[str, Any], records: Sequence[Record]) -> Page:
    """The page of a run of copies."""
    return page_of_tables(
        "copies",
        title=f"What copying attention patterns costs {specification['model']['name']}",
        lede="How far predictions move from the baseline's where heads take the pattern of an "
        "earlier head, for several ways to choose that head.",
        tables=copying_tables(records),
        specification=specification,
        records=records,
    )
