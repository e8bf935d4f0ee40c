"""The placement problem that the benchmarks of the searches share."""

from alpa_serve.placement_policy import ClusterEnv, ModelData
from alpa_serve.profiling import ParallelConfig, load_test_prof_result_v2
from alpa_serve.simulator.workload import GammaProcess, Workload
from alpa_serve.util import GB

PROFILES = ("llama-2-7b", "llama-2-13b", "falcon-7b", "gptj-6b")
RATE_PER_MODEL = 3.6
CV = 4.0
SLO_SCALE = 5


def search_problem(num_models, num_requests, memory_gib=24):
    """Return models, cluster and workload: as many devices as models, and about `num_requests` requests.

    Model i has profile i mod 4, an SLO of 5 times its latency on one device, and Gamma arrivals of seed i.
    """
    profiles = [load_test_prof_result_v2(name) for name in PROFILES]
    datas = []
    for i in range(num_models):
        profile = profiles[i % len(profiles)]
        slo = SLO_SCALE * sum(profile.stage_latency(ParallelConfig(1, 1, 1)))
        datas.append(ModelData(f"m{i}", slo, RATE_PER_MODEL, CV, profile))
    duration = num_requests / (RATE_PER_MODEL * num_models)
    workload = Workload.merge(
        *(
            GammaProcess(data.rate, data.cv).generate_workload(data.name, 0, duration, slo=data.slo, seed=i)
            for i, data in enumerate(datas)
        )
    )
    return datas, ClusterEnv(num_models, memory_gib * GB), workload
