"""What is printed, as a user reads it."""

import pytest

from sinkjax.cli import terminal
from sinkjax.report.table import Table

pytestmark = pytest.mark.quick


def test_texts_are_printed_as_they_are(capsys):
    """Names of files and prompts may look like a terminal's markup, or the names of its emoji."""
    said = "mask[/b] [1] a:x:b \\[c]"
    console = terminal.console()
    terminal.print_table(console, Table(said, (said,), [[said]], (said,)))
    console.rule(said)
    console.print(said)
    assert capsys.readouterr().out.count(said) == 6
