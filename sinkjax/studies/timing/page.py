"""The page of a timing."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.report.appendix import page_of_tables
from sinkjax.report.page import Page
from sinkjax.report.records import Record
from sinkjax.studies.quality.tables import candidates_table
from sinkjax.studies.timing.tables import timing_tables


def page(specification: Mapping[str, Any], records: Sequence[Record]) -> Page:
    """The page of a timing."""

    def order(record: Record) -> tuple[int, int]:
        sizes = {name: record[name] for name in specification["workloads"][0]}
        stage = specification["stages"].index(record["stage"])
        return specification["workloads"].index(sizes), stage

    return page_of_tables(
        "timing",
        title=f"How fast masks of {specification['model']['name']} run",
        lede="How long each mask's programs take beside the baseline's, timed by turns, and how "
        "much of what could be saved they save.",
        tables=[
            *timing_tables(sorted(records, key=order)),
            *([candidates_table(masks)] if (masks := specification["candidates"]) else []),
        ],
        specification=specification,
        records=records,
    )
