"""A problem of one request: what kernels are compiled with before a search's time begins."""

from __future__ import annotations

from alpa_serve.placement import ClusterEnv, ModelData
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.simulator.columnar_workload import Workload

TINY_CONFIG = ParallelConfig(1, 1, 1)


def tiny_problem() -> tuple[list[ModelData], ClusterEnv, Workload]:
    """Return one model on one device with one request, valid under any rules."""
    profile = ProfilingResult("model")
    profile.add_result(TINY_CONFIG, 1, [1.0], [0.0], [1.0], prefill_decode=PrefillDecode(1.0, 0.0, None))
    workload = Workload.from_columns([0.0], [0], ["model"], [2.0], input_tokens=[1], output_tokens=[1])
    return [ModelData("model", 2.0, 1.0, 1.0, profile)], ClusterEnv(1, 1.0), workload
