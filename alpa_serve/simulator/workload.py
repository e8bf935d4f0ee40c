"""Workloads and arrival processes under the names that AlpaServe gives them.

Requests live in :mod:`~alpa_serve.simulator.request`, workloads in
:mod:`~alpa_serve.simulator.columnar_workload`, processes in
:mod:`~alpa_serve.simulator.arrivals`, trace-driven workloads in :mod:`~alpa_serve.simulator.trace_workload` and
what their token counts are drawn from in :mod:`~alpa_serve.simulator.trace_tokens`, statistics in
:mod:`~alpa_serve.simulator.stats`.
"""

from alpa_serve.simulator.arrivals import (
    ArrivalProcess,
    DeterministicProcess,
    GammaProcess,
    ParetoProcess,
    PoissonProcess,
    UniformMMPP,
)
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.simulator.request import Request
from alpa_serve.simulator.stats import DEFAULT_WARMUP, PerDeviceStatsResult, PerModelStatsResult, StatsResult
from alpa_serve.simulator.trace_tokens import TokenPercentiles
from alpa_serve.simulator.trace_workload import WorkloadFromTrace

__all__ = [
    "DEFAULT_WARMUP",
    "ArrivalProcess",
    "DeterministicProcess",
    "GammaProcess",
    "ParetoProcess",
    "PerDeviceStatsResult",
    "PerModelStatsResult",
    "PoissonProcess",
    "Request",
    "StatsResult",
    "TokenPercentiles",
    "UniformMMPP",
    "Workload",
    "WorkloadFromTrace",
]
