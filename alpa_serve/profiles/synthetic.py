"""The four small profiles that AlpaServe's own tests are written against."""

from __future__ import annotations

from alpa_serve.profiles.result import ParallelConfig, ProfilingResult
from alpa_serve.util import GB
from alpa_serve.validation import check_known

# name -> (weights in GiB of the whole model, stage latencies in ms for each number of stages, batch size 1)
PROFILES: dict[str, tuple[float, list[list[float]]]] = {
    "alpa/bert-1.3b": (2.6, [[99], [51, 52], [28, 27, 27, 29], [15, 14, 14, 14, 14, 14, 14, 16]]),
    "alpa/bert-2.6b": (5.2, [[148], [75, 76]]),
    "test-2GB-100ms": (2.0, [[100], [51] * 2, [26] * 4]),
    "test-4GB-150ms": (4.0, [[150], [76] * 2, [39] * 4]),
}


def load_test_prof_result(name: str) -> ProfilingResult:
    """Return one of AlpaServe's test profiles: pipelines only, batch size 1, weights split evenly.

    Parameters
    ----------
    name : str
        "alpa/bert-1.3b", "alpa/bert-2.6b", "test-2GB-100ms" or "test-4GB-150ms".

    Raises
    ------
    UnknownNameError
        A ValueError that lists the known names.
    """
    weights_gib, pipelines = PROFILES[check_known(name, PROFILES, "test profile")]
    result = ProfilingResult(name, source="AlpaServe's test profiles")
    for stages_ms in pipelines:
        num_stages = len(stages_ms)
        result.add_result(
            ParallelConfig(1, 1, num_stages),
            batch_size=1,
            stage_latency=[ms / 1000 for ms in stages_ms],
            act_mem=[0.0] * num_stages,
            weight_mem=[weights_gib * GB / num_stages] * num_stages,
        )
    return result
