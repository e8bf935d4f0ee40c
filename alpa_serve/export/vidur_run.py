"""Requests for one model on one group as a run of Vidur: its command line.

Vidur simulates one model on replicas of one shape. Flag names are those of Vidur's ``python -m vidur.main --help`` as
its README documents them (A. Agrawal et al., Vidur, MLSys 2024); no version of Vidur was run to check them.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from alpa_serve.validation import check_int, check_known

if TYPE_CHECKING:
    from alpa_serve.profiling import ParallelConfig

NETWORKS = {"a40": "a40_pairwise_nvlink", "a100": "a100_dgx", "h100": "h100_dgx"}
"""Vidur's devices, and the interconnect that is taken with each."""

HUB_NAMES = {
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "falcon-7b": "tiiuae/falcon-7b",
    "falcon-40b": "tiiuae/falcon-40b",
    "gptj-6b": "EleutherAI/gpt-j-6b",
}
"""Hugging Face names of MaverIQ's models, by which Vidur knows a model."""

PROFILED_BY_VIDUR = ("llama-2-7b", "llama-2-70b")
"""Those of them that Vidur lists as supported; the others must be profiled with Vidur's tools first."""

MIN_TOKENS = 4096
"""Vidur's own default for the tokens that a request and a batch may have; raised where requests are longer."""


def vidur_command(
    vidur_model: str,
    config: ParallelConfig,
    trace_file: str,
    *,
    device: str,
    longest_input: int,
    longest_request: int,
    batch_size: int = 1,
) -> str:
    """Return the shell command that simulates such a trace.

    Parameters
    ----------
    vidur_model : str
        What Vidur calls the model.
    config : ParallelConfig
    trace_file : str
        As a word for the shell, quoted where it needs be.
    device : {"a40", "a100", "h100"}
    longest_input, longest_request : int
        Most input tokens, and most input and output tokens together, of a request.
    batch_size : int
        Most requests of a batch; 1 as in this package's simulation.

    Raises
    ------
    UnknownNameError, InvalidConfigError
        If Vidur has no such device, or a figure is out of range.
    """
    check_int(batch_size, "batch_size", minimum=1)
    network = NETWORKS[check_known(device, NETWORKS, "Vidur device")]
    flags = {
        "replica_config_device": device,
        "replica_config_network_device": network,
        "replica_config_model_name": vidur_model,
        "replica_config_tensor_parallel_size": config.op,
        "replica_config_num_pipeline_stages": config.pp,
        # data parallel copies are replicas of Vidur's
        "cluster_config_num_replicas": config.dp,
        "request_generator_config_type": "trace_replay",
        "trace_request_generator_config_max_tokens": max(longest_request, MIN_TOKENS),
        "replica_scheduler_config_type": "vllm",
        "vllm_scheduler_config_batch_size_cap": batch_size,
        "vllm_scheduler_config_max_tokens_in_batch": max(longest_input, MIN_TOKENS),
        # sic
        "random_forrest_execution_time_predictor_config_prediction_max_prefill_chunk_size": max(
            longest_input, MIN_TOKENS
        ),
        "random_forrest_execution_time_predictor_config_prediction_max_tokens_per_request": max(
            longest_request, MIN_TOKENS
        ),
    }
    words = [
        "python -m vidur.main",
        *(f"--{flag} {shlex.quote(str(value))}" for flag, value in flags.items()),
        f"--trace_request_generator_config_trace_file {trace_file}",
    ]
    return " \\\n  ".join(words) + "\n"
