"""MaverIQ's measurements of six LLMs on RTX A6000 GPUs (TensorRT-LLM), shipped as ``data/maveriq_a6000_profiles.csv``.

The table has one row per model, precision and parallel config at batch size 1: a least-squares line through the
latencies of 10 to 200 output tokens (``prefill_s``, ``decode_s_per_token``), the measured latency of 20 tokens, and
the memory of all devices together.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

from alpa_serve.profiles.result import ParallelConfig, ProfilingResult
from alpa_serve.util import GB
from alpa_serve.validation import check_known

PUBLISHED_SPEEDUP = 5
"""The published AlpaServe experiments divided MaverIQ's measured latencies by this; nothing justifies it."""


@cache
def _rows() -> tuple[dict[str, str], ...]:
    text = resources.files("alpa_serve.profiles").joinpath("data/maveriq_a6000_profiles.csv").read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def model_names() -> list[str]:
    """List the profiled models, in the table's order."""
    return list(dict.fromkeys(row["model"] for row in _rows()))


def load_test_prof_result_v2(name: str) -> ProfilingResult:
    """Return MaverIQ's figures of a model in the form that the published AlpaServe experiments used.

    float16 weights and KV cache. The latency of 20 output tokens is divided by five and split evenly over the
    stages; the memory of all devices (weights and run-time buffers) is split evenly over the devices.

    Parameters
    ----------
    name : str
        llama-2-7b, llama-2-13b, llama-2-70b, falcon-7b, falcon-40b or gptj-6b.

    Raises
    ------
    UnknownNameError
        A ValueError that lists the known models.

    Notes
    -----
    The division by five makes every model five times faster than it was measured to be. It is kept here, and only
    here, so that published results can be compared with.
    """
    check_known(name, model_names(), "model")
    result = ProfilingResult(name)
    for row in _rows():
        if (row["model"], row["dtype"], row["int8_kv_cache"]) != (name, "float16", "false"):
            continue
        op, pp = int(row["op"]), int(row["pp"])
        result.add_result(
            ParallelConfig(1, op, pp),
            batch_size=1,
            stage_latency=[float(row["latency_20_tokens_s"]) / PUBLISHED_SPEEDUP / pp] * pp,
            act_mem=[0.0] * pp,
            weight_mem=[float(row["memory_gib_total"]) * GB / (op * pp)] * pp,
        )
    return result
