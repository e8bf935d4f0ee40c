"""AlpaServe's controller module: running a serving case on either simulator."""

from __future__ import annotations

from alpa_serve.simulator.approximate import (
    DummyController,
    PlacementRun,
    approximate_one_case,
    approximate_one_case_one_placement,
)
from alpa_serve.simulator.client import Client, run_workload, simulate_one_case
from alpa_serve.simulator.event_controller import Controller
from alpa_serve.simulator.group_manager import GroupManager

__all__ = [
    "Client",
    "Controller",
    "DummyController",
    "GroupManager",
    "PlacementRun",
    "approximate_one_case",
    "approximate_one_case_one_placement",
    "run_workload",
    "simulate_one_case",
]
