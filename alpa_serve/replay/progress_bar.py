"""A replay's progress as a bar on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alpa_serve.replay.results import ReplayProgress


@contextmanager
def replay_progress_bar(hidden: bool = False) -> Iterator[Callable[[ReplayProgress], None]]:
    """Show a bar of the requests sent while the block runs; yields the callback for the replay.

    What is no terminal gets the state at the end alone.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: ReplayProgress) -> None:
            bar.update(
                task,
                description=(
                    f"{progress.answered} answered, {progress.in_flight} in flight, "
                    f"attainment {progress.attainment:.4f}, late {1e3 * progress.lateness_mean:.1f} ms "
                    f"(max {1e3 * progress.lateness_max:.1f})"
                ),
                completed=progress.sent,
                total=progress.total,
            )

        yield show
