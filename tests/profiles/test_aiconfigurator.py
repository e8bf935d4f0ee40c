import json
import logging
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from alpa_serve.errors import InvalidConfigError, InvalidProfileError, UnknownNameError
from alpa_serve.placement import ClusterEnv, ModelData
from alpa_serve.placement_policy import MixedParallelismSearch, PlacementEvaluator
from alpa_serve.profiles import aiconfigurator, load, validate
from alpa_serve.profiles.aiconfigurator import DEFAULT_CONFIGS, model_names, systems
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.simulator.workload import Workload
from alpa_serve.trace.llm import load_azure_llm_trace
from alpa_serve.util import GB

pytest.importorskip("aiconfigurator_core")

EIGHT_MODELS = [
    "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Meta-Llama-3.1-70B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "nvidia/Nemotron-H-56B-Base-8K",
]
"""Of three families: Llama 3.1, Qwen3 (dense, and one with experts), Nemotron (with state-space layers)."""

QWEN_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}


def rows_of(model, config, batch_size, system="h100_sxm", input_tokens=512, output_tokens=20):
    """Return the package's own rows of a model: of the prefill, and of the decode steps."""
    from aiconfigurator_core.sdk import EngineHandle

    _, op, pp = config
    handle = EngineHandle.compile(model, system, "vllm", tp_size=op, pp_size=pp, moe_tp_size=op)
    return handle.run_static_per_op(batch_size=batch_size, isl=input_tokens, osl=output_tokens)


def seconds(rows, part=""):
    return sum(row[1] for row in rows if part in row[0]) / 1000


@pytest.fixture(scope="module")
def qwen():
    return aiconfigurator.load("Qwen/Qwen3-8B")


@pytest.mark.parametrize(
    ("model", "parameters"),
    # of the models' own cards; embeddings count once a table
    [
        ("meta-llama/Meta-Llama-3.1-8B", 8.030e9),
        ("Qwen/Qwen3-8B", 8.191e9),
        ("meta-llama/Meta-Llama-3.1-70B", 70.554e9),
    ],
)
def test_weights_of_dense_models_are_two_bytes_a_parameter(model, parameters):
    profile = load(model, system="h100_sxm", batch_sizes=[1])
    assert profile.dtype == "bfloat16"
    for op in (1, 2, 4, 8):
        assert profile.weight_bytes((1, op, 1)) == pytest.approx(2 * parameters / op, rel=1e-3)


@pytest.mark.parametrize("config", [(1, 1, 1), (1, 2, 2), (1, 1, 4), (1, 4, 4)])
def test_stages_add_up_to_the_whole_pipeline(qwen, config):
    prefill, decode = rows_of("Qwen/Qwen3-8B", config, 1)
    assert sum(qwen.stage_latency(config)) == pytest.approx(seconds(prefill) + seconds(decode), rel=1e-9)


def test_embedding_logits_and_transfers_belong_to_their_stages(qwen):
    rows = [row for part in rows_of("Qwen/Qwen3-8B", (1, 2, 4), 1) for row in part]
    embedding, logits, transfers = (seconds(rows, part) for part in ("_embedding", "_logits", "_p2p"))
    even = (seconds(rows) - embedding - logits - transfers) / 4
    assert min(embedding, logits, transfers, even) > 0
    expected = [even + transfers / 3] * 3 + [even + logits]
    expected[0] += embedding
    assert qwen.stage_latency((1, 2, 4)) == pytest.approx(expected, rel=1e-9)


def test_prefill_and_decode_give_the_stage_latency(qwen):
    for config, data in qwen.para_dict.items():
        for batch_size, figures in data.prefill_decode.items():
            assert figures.service_s(512, 20) == pytest.approx(sum(data.latency[batch_size])), (config, batch_size)


def test_the_first_token_takes_the_prefill_and_each_further_one_a_decode_step(qwen):
    prefill, decode = rows_of("Qwen/Qwen3-8B", (1, 1, 1), 1)
    figures = qwen.prefill_decode((1, 1, 1))
    assert figures.first_token_s(512) == pytest.approx(seconds(prefill))
    assert figures.decode_s_per_token == pytest.approx(seconds(decode) / 19)


def test_no_time_falls_with_the_batch_size(qwen):
    decode = [seconds(rows_of("Qwen/Qwen3-8B", (1, 2, 1), batch_size)[1]) / 19 for batch_size in (1, 2, 4, 8, 16)]
    figures = [qwen.prefill_decode((1, 2, 1), batch_size) for batch_size in (1, 2, 4, 8, 16)]
    assert [known.decode_s_per_token for known in figures] == pytest.approx(np.maximum.accumulate(decode))
    for data in qwen.para_dict.values():
        totals = [sum(data.latency[batch_size]) for batch_size in sorted(data.latency)]
        assert totals == sorted(totals)


def test_what_seems_to_fall_is_raised_to_the_running_maximum(monkeypatch):
    class Handle:
        @staticmethod
        def run_static_per_op(batch_size, isl, osl):
            prefill = {1: 100.0, 2: 90.0, 4: 5.0}[batch_size]
            decode = {1: 10.0, 2: 8.0, 4: 20.0}[batch_size]
            return [("context_a", prefill)], [("generation_a", decode * (osl - 1))]

    from aiconfigurator_core import sdk

    monkeypatch.setattr(sdk.EngineHandle, "compile", lambda *arguments, **keywords: Handle)
    monkeypatch.setattr(aiconfigurator, "_handles", {})
    profile = load("Qwen/Qwen3-8B", system="h100_sxm", batch_sizes=[4, 1, 2], configs=[(1, 1, 2)], output_tokens=11)
    firsts = [profile.prefill_decode((1, 1, 2), batch_size).first_token_s(512) for batch_size in (1, 2, 4)]
    decodes = [profile.prefill_decode((1, 1, 2), batch_size).decode_s_per_token for batch_size in (1, 2, 4)]
    assert firsts == pytest.approx([0.1, 0.1, 0.1])
    assert decodes == pytest.approx([0.01, 0.01, 0.02])
    assert profile.stage_latency((1, 1, 2), 2) == pytest.approx([0.1, 0.1])


def test_a_first_token_never_takes_less_than_a_further_one():
    profile = load("Qwen/Qwen3-8B", system="a100_sxm", input_tokens=1, output_tokens=2000, configs=[(1, 1, 1)])
    for batch_size, figures in profile.para_dict[1, 1, 1].prefill_decode.items():
        assert figures.first_token_s(1) >= figures.decode_s_per_token
        assert figures.service_s(1, 2000) == pytest.approx(sum(profile.stage_latency((1, 1, 1), batch_size)))


def test_memory_is_weights_activations_and_kv_cache(qwen):
    # 36 layers of keys and values, 8 heads of 128, 2 bytes
    per_token = 36 * 2 * 8 * 128 * 2
    for config, data in qwen.para_dict.items():
        assert data.kv_bytes_per_token == pytest.approx([per_token / config.op / config.pp] * config.pp)
        assert len(set(data.weight_mem)) == 1
        activations = [data.act_mem[batch_size][0] for batch_size in sorted(data.act_mem)]
        assert activations == sorted(activations)
        assert 0 < activations[0] < activations[-1]
        # once a device, not once a model: no part of the weights
        assert data.metadata["runtime_overhead_bytes"] > 0


def test_the_profile_says_where_it_comes_from(qwen):
    assert qwen.model_name == "Qwen/Qwen3-8B"
    assert qwen.source.startswith("aiconfigurator-core 0.12")
    assert "vllm 0." in qwen.source
    assert (qwen.hardware, qwen.dtype) == ("h100_sxm", "bfloat16")


@pytest.mark.parametrize(
    ("model", "dtype"),
    [("Qwen/Qwen3-32B-FP8", "fp8_block"), ("openai/gpt-oss-20b", "bfloat16, experts w4a16_mxfp4")],
)
def test_the_type_of_the_weights_is_the_models_own(model, dtype):
    assert load(model, system="h100_sxm", batch_sizes=[1], configs=[(1, 1, 1)]).dtype == dtype


def test_the_type_of_weights_and_kv_cache_can_be_chosen(qwen):
    chosen = load(
        "Qwen/Qwen3-8B", system="h100_sxm", configs=[(1, 1, 1)], gemm_quant_mode="fp8", kvcache_quant_mode="fp8"
    )
    assert chosen.dtype == "fp8"
    assert chosen.weight_bytes((1, 1, 1)) < 0.7 * qwen.weight_bytes((1, 1, 1))
    assert 2 * chosen.para_dict[1, 1, 1].kv_bytes_per_token[0] == qwen.para_dict[1, 1, 1].kv_bytes_per_token[0]


@pytest.mark.parametrize("backend", ["vllm", "sglang", "trtllm"])
def test_experts_can_be_sliced_or_shared_out(backend):
    sliced, shared = (
        load("Qwen/Qwen3-30B-A3B", system="h100_sxm", backend=backend, configs=[(1, 4, 1)], expert_parallel=parallel)
        for parallel in (False, True)
    )
    assert sliced.weight_bytes((1, 4, 1)) == pytest.approx(shared.weight_bytes((1, 4, 1)), rel=0.05)
    assert sliced.stage_latency((1, 4, 1)) != shared.stage_latency((1, 4, 1))
    assert backend in sliced.source


def test_a_folder_with_a_config_is_a_model(tmp_path, qwen):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_8B))
    profile = load(tmp_path, system="h100_sxm")
    assert profile.model_name == str(tmp_path)
    assert profile.para_dict == qwen.para_dict


def test_nothing_is_found_in_these_profiles(qwen):
    assert [str(finding) for finding in validate(qwen) if finding.severity != "note"] == []


def test_configs_that_a_model_cannot_do_are_left_out_and_logged(caplog):
    with caplog.at_level(logging.INFO, "alpa_serve.profiles.aiconfigurator"):
        profile = load("Qwen/Qwen3-30B-A3B", system="a100_sxm")
    left_out = set(DEFAULT_CONFIGS) - set(profile.para_dict)
    assert left_out == {(1, 8, 1), (1, 8, 2)}
    assert len(caplog.records) == 2
    assert "config (1, 8, 1): PerfDataNotAvailableError: " in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ((1, 3, 1), "num_heads 32 should be divisible by tp_size 3"),
        ((1, 1, 37), "36 layers do not fill 37 stages"),
        ((2, 1, 1), "dp must be 1"),
        ((1, 0, 1), "op of .* must be"),
    ],
)
def test_a_config_that_was_asked_for_and_cannot_be_is_refused(config, message):
    with pytest.raises(InvalidProfileError, match=message):
        load("Qwen/Qwen3-8B", system="h100_sxm", configs=[(1, 1, 1), config])


def test_a_model_that_cannot_be_timed_at_all_is_refused_with_the_reasons():
    with pytest.raises(InvalidProfileError, match=r"openai/gpt-oss-20b on a100_sxm under vllm 0\..*config \(1, 1, 1\)"):
        load("openai/gpt-oss-20b", system="a100_sxm")


@pytest.mark.parametrize(
    ("model", "where", "message"),
    [
        ("Qwen/Qwen3-9B", {}, "unknown model of aiconfigurator.*Qwen/Qwen3-8B.*or give a folder with the model's"),
        ("Qwen/Qwen3-8B", {"system": "h100"}, "unknown system of aiconfigurator 'h100'; known: a100_sxm,.*h100_sxm"),
        ("Qwen/Qwen3-8B", {"backend": "tgi"}, "unknown backend on h100_sxm 'tgi'; known: sglang, trtllm, vllm"),
        ("Qwen/Qwen3-8B", {"system": "b60", "backend": "sglang"}, "unknown backend on b60 'sglang'; known: vllm"),
        ("Qwen/Qwen3-8B", {"backend_version": "9"}, "unknown version of vllm on h100_sxm '9'; known: current"),
        ("Qwen/Qwen3-8B", {"gemm_quant_mode": "fp4"}, "unknown gemm_quant_mode 'fp4'; known: bfloat16"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(model, where, message):
    with pytest.raises(UnknownNameError, match=message):
        load(model, **{"system": "h100_sxm"} | where)


@pytest.mark.parametrize(
    "where",
    [{"input_tokens": 0}, {"output_tokens": 1}, {"batch_sizes": [0]}, {"batch_sizes": []}, {"input_tokens": "5"}],
)
def test_arguments_out_of_range_are_refused(where):
    with pytest.raises(InvalidConfigError, match=next(iter(where))[:5]):
        load("Qwen/Qwen3-8B", system="h100_sxm", **where)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(InvalidConfigError, match=r"no config\.json in it"):
        load(tmp_path, system="h100_sxm")


@pytest.mark.parametrize(("content", "message"), [(b'{"x":\n', "line 2, column 1: "), (b"\xff", "not a text file")])
def test_a_folder_with_a_broken_config_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InvalidProfileError, match=rf"config\.json.*{message}"):
        load(tmp_path, system="h100_sxm")


def test_a_reason_that_all_configs_share_is_said_once(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Unheard"]}')
    with pytest.raises(InvalidProfileError, match=r"config \(1, 1, 1\), \(1, 1, 2\), .*Unheard") as caught:
        load(tmp_path, system="h100_sxm")
    assert str(caught.value).count("Unheard") == 1


def test_what_there_is_can_be_listed():
    assert set(EIGHT_MODELS) <= set(model_names())
    assert {"vllm", "sglang", "trtllm"} == set(systems()["h100_sxm"]) == set(systems()["a100_sxm"])


def test_the_log_of_the_package_is_as_before_and_nothing_is_printed(capfd):
    logger = logging.getLogger("aiconfigurator_core")
    logger.setLevel(logging.WARNING)
    load("Qwen/Qwen3-8B", system="b200_sxm", backend="sglang", configs=[(1, 1, 8)])
    with pytest.raises(InvalidProfileError):
        load("Qwen/Qwen3-8B", system="b200_sxm", backend="sglang", configs=[(1, 3, 1)])
    assert logger.level == logging.WARNING
    assert capfd.readouterr() == ("", "")
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def conversation():
    """Return every other request of the Conversation trace, with its token counts, for any of the eight models."""
    trace = load_azure_llm_trace("Conversation")[::2]
    output_tokens = trace["GeneratedTokens"].to_numpy()
    return Workload.from_columns(
        (trace["TIMESTAMP"] - trace["TIMESTAMP"].iloc[0]).dt.total_seconds().to_numpy(),
        np.random.default_rng(0).integers(len(EIGHT_MODELS), size=len(trace)),
        EIGHT_MODELS,
        slos=3 + 0.05 * output_tokens,
        input_tokens=trace["ContextTokens"].to_numpy(),
        output_tokens=output_tokens,
    )


@pytest.mark.parametrize(("system", "attained"), [("h100_sxm", 0.93), ("a100_sxm", 0.8)])
def test_eight_models_of_three_families_are_placed_on_sixteen_devices(conversation, system, attained):
    profiles = [load(model, system=system) for model in EIGHT_MODELS]
    assert {profile.hardware for profile in profiles} == {system}
    models = [ModelData(p.model_name, 3, 1, 1, p, concurrent_tokens=8192) for p in profiles]
    cluster = ClusterEnv(16, 75 * GB)
    rules = replace(ALPASERVE, service="tokens")
    policy = MixedParallelismSearch(time_budget=inf, max_evaluations=2000, rules=rules)
    placement, _ = policy.solve_placement(models, cluster, conversation)
    placement.verify(models, cluster)
    assert set().union(*placement.group_models) == set(range(8))
    assert attained < PlacementEvaluator(models, cluster, conversation, rules=rules).evaluate(placement).goodput < 1


def test_the_package_is_quiet_until_the_last_of_several_threads_is_done():
    logger = logging.getLogger("aiconfigurator_core")
    before = logger.level
    one, other = aiconfigurator._quiet(), aiconfigurator._quiet()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert logger.level == logging.CRITICAL
    other.__exit__(None, None, None)
    assert logger.level == before


def test_a_config_json_that_changes_is_read_again(tmp_path):
    def weights(num_layers):
        (tmp_path / "config.json").write_text(json.dumps({**QWEN_8B, "num_hidden_layers": num_layers}))
        profile = load(tmp_path, system="h100_sxm", batch_sizes=[1], configs=[(1, 1, 1)])
        return profile.weight_bytes((1, 1, 1))

    full, half = weights(36), weights(18)
    assert half < 0.6 * full
    assert weights(36) == full


def test_a_folder_of_the_same_name_does_not_hide_a_known_model(tmp_path, monkeypatch):
    (tmp_path / "Qwen" / "Qwen3-8B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load("Qwen/Qwen3-8B", system="h100_sxm", batch_sizes=[1], configs=[(1, 1, 1)]).para_dict
