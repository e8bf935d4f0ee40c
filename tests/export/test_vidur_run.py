import shlex

import pytest

from alpa_serve.errors import InvalidConfigError, UnknownNameError
from alpa_serve.export.vidur_run import vidur_command
from alpa_serve.profiling import ParallelConfig


def command(**changes):
    arguments = {"device": "a40", "longest_input": 128, "longest_request": 148} | changes
    text = vidur_command("meta-llama/Llama-2-7b-hf", ParallelConfig(3, 2, 4), "'a trace.csv'", **arguments)
    words = shlex.split(text.replace("\\\n", ""))
    assert words[:3] == ["python", "-m", "vidur.main"]
    return dict(zip(words[3::2], words[4::2], strict=True))


def test_the_command_names_model_parallel_degrees_and_trace():
    flags = command(batch_size=2)
    assert flags["--replica_config_model_name"] == "meta-llama/Llama-2-7b-hf"
    assert flags["--replica_config_tensor_parallel_size"] == "2"
    assert flags["--replica_config_num_pipeline_stages"] == "4"
    assert flags["--cluster_config_num_replicas"] == "3"
    assert flags["--replica_config_network_device"] == "a40_pairwise_nvlink"
    assert flags["--trace_request_generator_config_trace_file"] == "a trace.csv"
    assert flags["--vllm_scheduler_config_batch_size_cap"] == "2"


def test_limits_of_vidurs_grow_with_the_requests():
    limit, chunk = "--trace_request_generator_config_max_tokens", "--vllm_scheduler_config_max_tokens_in_batch"
    assert (command()[limit], command()[chunk]) == ("4096", "4096")
    longer = command(longest_input=5000, longest_request=5020)
    assert (longer[limit], longer[chunk]) == ("5020", "5000")


def test_what_vidur_cannot_simulate_is_refused():
    with pytest.raises(UnknownNameError, match="unknown Vidur device 'a6000'; known: a40, a100, h100"):
        command(device="a6000")
    with pytest.raises(InvalidConfigError, match="batch_size must be a whole number >= 1, got 0"):
        command(batch_size=0)
