"""Output to a terminal: tables, durations, and how fast this machine is now."""

import functools
import timeit

import jax
import jax.numpy as jnp
import rich.box
import rich.console
import rich.table

from sinkjax.report.table import Table

_WIDTH = 110


def console() -> rich.console.Console:
    """Standard output: as wide as the terminal, or wide enough for a table where there is none.

    It prints texts as they are: of files, models and prompts that users name, `[b]` and `:x:` are
    no markup.
    """
    as_is = functools.partial(rich.console.Console, markup=False, emoji=False)
    terminal = as_is()
    return terminal if terminal.is_terminal else as_is(width=_WIDTH)


def print_table(console: rich.console.Console, table: Table) -> None:
    """Prints a table with its notes under it."""
    grid = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(table.columns):
        side = "left" if index < table.labels else "right"
        grid.add_column(column, justify=side, overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    console.print(table.title, style="bold")
    console.print(grid)
    for note in table.notes:
        console.print(note, style="dim")
    console.print()


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def matrix_rate() -> float:
    """FLOP/s of a float32 matrix product here, the best of five after the compiling one."""
    size = 1024
    product = jax.jit(lambda x: x @ x)
    x = jnp.ones((size, size), jnp.float32)
    seconds = timeit.repeat(lambda: product(x).block_until_ready(), number=1, repeat=6)
    return 2 * size**3 / min(seconds[1:])
