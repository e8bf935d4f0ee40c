"""How a search reports on itself while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alpa_serve.util import build_logger

if TYPE_CHECKING:
    from alpa_serve.placement import ModelPlacement


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands.

    Attributes
    ----------
    stage : str
        What is being done.
    done, total : int
        Steps of this stage; `total` is 0 where it is not known.
    score : float or None
        Of the best placement so far.
    placement : ModelPlacement or None
        The best placement so far.
    """

    stage: str
    done: int
    total: int
    score: float | None = None
    placement: ModelPlacement | None = None


ProgressCallback = Callable[[SearchProgress], None]
"""Called from the thread of the search; what it raises ends the search."""


def reporter(verbose: int, callback: ProgressCallback | None) -> ProgressCallback:
    """Return what a search calls to report: `callback`, and a log line if `verbose` is at least 1."""
    logger = build_logger("alpa_serve") if verbose else None

    def report(progress: SearchProgress) -> None:
        if logger is not None:
            best = "" if progress.score is None else f", best score {progress.score:.4f}"
            logger.info("%s: %d of %d%s", progress.stage, progress.done, progress.total, best)
        if callback is not None:
            callback(progress)

    return report
