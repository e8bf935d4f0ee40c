"""AlpaServe's deployment strategy for MaverIQ's models and traces, without a GPU.

Run as a script, it prints the strategy for the settings below (each of them is a flag too, see --help). Run by pytest
or unittest, it checks the published placements.
"""

import sys
import unittest
from pathlib import Path

from parameterized import parameterized

from alpa_serve import cli
from alpa_serve.experiments.job import JobSettings
from alpa_serve.experiments.published import read_entries, recompute
from alpa_serve.placement_policy import ClusterEnv, ModelData
from alpa_serve.profiling import load_test_prof_result_v2
from alpa_serve.simulator.trace_workload import model_slo
from alpa_serve.util import GB

# ---- settings: edit them, or pass the flag of the same name ---------------------------------------------------------

scale_rate = 0.4  # factor on the requests per minute of the trace
trace_name = "Conversation"  # "Conversation" | "Coding" | a file like AzureLLMInferenceTrace_conv.csv
rules_name = "alpaserve"  # how the cluster serves: "alpaserve" as published | "maveriq" as measured on real hardware
slo = 5.0  # factor on the time that a single request takes: TTFT + TPOT * output_length

# the models to deploy, in the order of loading; load_time counts steps of 30 s, requests for a model name m{id}
model_list = [
    {"id": 1, "name": "llama-2-70b", "load_time": 0, "output_length": 20},
    {"id": 2, "name": "falcon-40b", "load_time": 5, "output_length": 20},
    {"id": 3, "name": "llama-2-7b", "load_time": 10, "output_length": 20},
    {"id": 4, "name": "falcon-40b", "load_time": 15, "output_length": 20},
]

# the same models as the search takes them: name, SLO in s, requests/s, cv, profile. The search replays the trace, so
# rate and cv matter only to policies that work without one. Rules other than "alpaserve" bring profiles of their own
model_datas = [
    ModelData(
        f"m{model['id']}",
        model_slo(model["name"], model["output_length"], slo),
        1.0,
        1.0,
        load_test_prof_result_v2(model["name"]),
    )
    for model in model_list
]

cluster_env = ClusterEnv(num_devices=8, mem_budget=48 * GB, num_devices_per_node=8)

# ---------------------------------------------------------------------------------------------------------------------

SETTINGS = JobSettings(
    trace=trace_name,
    scale_rate=scale_rate,
    slo=slo,
    rules=rules_name,
    cluster_env=cluster_env,
    model_set=None,
    model_list=model_list,
    model_datas=model_datas,
)


def published_cases():
    entries = read_entries(Path(__file__).parents[2] / "alpaserve_configs.txt")
    for entry in entries:
        run = entry.experiment
        title = f"{run.baseline}_{run.model_set}_{run.trace}_{run.scale_rate}_{run.slo_scale}".replace("*", "Star")
        yield title, entry


class PublishedPlacementTest(unittest.TestCase):
    @parameterized.expand(published_cases)
    def test_search_reproduces_the_published_placement(self, _title, entry):
        self.assertEqual(recompute(entry.experiment), entry)


if __name__ == "__main__":
    sys.exit(cli.place(None, SETTINGS))
