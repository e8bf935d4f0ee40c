import numpy as np

from alpa_serve.experiments import job, vidur_accuracy
from alpa_serve.experiments.maveriq import Experiment
from alpa_serve.experiments.trace_steps import step_process, trace_step_counts
from alpa_serve.trace.llm import load_llm_trace


def test_poisson_is_played_once_in_its_own_time():
    trace = load_llm_trace("poisson", scale=2.0, seed=42)
    process = step_process("Poisson", 2.0)
    assert process.step_counts.tolist() == np.histogram(trace.arrival_s, 60, (0, 1800))[0].tolist()
    assert trace_step_counts("poisson", 2.0).tolist() == process.step_counts.tolist()


def test_recorded_traces_are_played_twice_by_minutes_and_once_in_command_lists():
    once = trace_step_counts("code", 0.5)
    assert once.tolist() * 2 == step_process("code", 0.5).step_counts.tolist()


def test_every_user_of_a_trace_by_name_has_the_same_poisson(monkeypatch, tmp_path):
    expected = trace_step_counts("poisson", 0.1)
    workloads = [Experiment("AlpaServe", "large", "poisson", 0.1, 5.0).workload()]
    settings = job.JobSettings()
    load = {"trace": "poisson", "scale_rate": 0.1, "slo": 5.0, "rules": "alpaserve"}
    cluster = {"num_devices": 8, "mem_budget_gib": 48, "num_devices_per_node": 8}
    workloads.append(job.deployment_job(settings, model_set="large", **load, **cluster).workload)

    def no_runs(placement, datas, workload, rules, group):
        workloads.append(workload)
        return []

    monkeypatch.setattr(vidur_accuracy, "vidur_runs", no_runs)
    placement = "tests/baselines/data/vidur_sample/placement.json"
    flags = ["export", "--placement", placement, "--trace", "poisson", "--scale_factor", "0.1"]
    assert vidur_accuracy.main([*flags, "--output", str(tmp_path)]) == 0
    assert len(workloads) == 3
    for workload in workloads:
        assert len(workload) == expected.sum()
        assert workload.arrivals.tolist() == workloads[0].arrivals.tolist()
