"""AlpaServe's controller module: running a serving case on either simulator."""

from __future__ import annotations

from alpa_serve.simulator.approximate import (
    DummyController,
    PlacementRun,
    approximate_one_case,
    approximate_one_case_one_placement,
)

__all__ = [
    "DummyController",
    "PlacementRun",
    "approximate_one_case",
    "approximate_one_case_one_placement",
]
