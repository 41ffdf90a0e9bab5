"""The page of predictions of sinks."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.report.appendix import page_of_tables
from sinkjax.report.page import Page
from sinkjax.report.records import Record
from sinkjax.studies.predict.tables import prediction_tables


def page(specification: Mapping[str, Any], records: Sequence[Record]) -> Page:
    """The page of predictions of sinks."""
    return page_of_tables(
        "predict",
        title=f"Predicting the sink heads of {specification['model']['name']}",
        lede="Whether what is known of layer 0 on a prompt predicts which heads of later layers "
        "are sinks on it, and whether that is good enough to act on.",
        tables=prediction_tables(records),
        specification=specification,
        records=records,
    )
