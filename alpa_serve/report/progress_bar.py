"""A search's progress as a bar on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import TaskID

    from alpa_serve.placement import ModelPlacement
    from alpa_serve.placement_policy import SearchProgress


class SearchWatch:
    """What a search calls to report: shows its progress, and keeps the best placement so far.

    Attributes
    ----------
    placement : ModelPlacement or None
    """

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task
        self.placement: ModelPlacement | None = None

    def __call__(self, progress: SearchProgress) -> None:
        """Show `progress`."""
        if progress.placement is not None:
            # a search may go on changing its lists
            self.placement = progress.placement.copy()
        best = "" if progress.score is None else f", best score {progress.score:.4f}"
        self._bar.update(
            self._task,
            description=f"{progress.stage}{best}",
            completed=progress.done,
            total=progress.total or None,
        )


@contextmanager
def search_progress_bar() -> Iterator[SearchWatch]:
    """Show a bar while the block runs; yields the callback for the search."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield SearchWatch(bar, bar.add_task("searching", total=None))
