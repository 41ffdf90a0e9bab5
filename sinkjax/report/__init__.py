"""Reports of runs, from their records only: the same records give the same bytes."""

from sinkjax.report.tables import Table, summary_tables
from sinkjax.report.write import write_report

__all__ = ["Table", "summary_tables", "write_report"]
