"""Tables as plain text, for files and for terminals that know ASCII only."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# rich's SIMPLE_HEAD with plain dashes
_RULED = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table without borders as lines without trailing blanks.

    Parameters
    ----------
    columns : sequence of str
        Heads; those that start with # hold numbers.
    rows : iterable of sequence of str
        Cells, which may have several lines; what is in them is shown as it is.
    """
    table = Table(box=_RULED, show_edge=False, pad_edge=True)
    for column in columns:
        table.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left")
    for row in rows:
        table.add_row(*row)
    # wider than any table: nothing is wrapped or cut
    console = Console(
        file=io.StringIO(),
        width=10**6,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())
