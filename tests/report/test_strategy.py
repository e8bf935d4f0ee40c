import re

import pytest

from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.placement_policy import PlacementEvaluator
from alpa_serve.profiling import ParallelConfig, load_test_prof_result, load_test_prof_result_v2
from alpa_serve.report.strategy import format_strategy
from alpa_serve.simulator.workload import PoissonProcess, Workload
from alpa_serve.util import GB

ONE, TWO, FOUR, TENSOR = (ParallelConfig(1, op, pp) for op, pp in ((1, 1), (1, 2), (1, 4), (2, 1)))
LABELS = ["small", "large", "idle", "huge"]
CLUSTER = ClusterEnv(8, 6.5 * GB, 4)
PLACEMENT = ModelPlacement([TWO, ONE, FOUR], [[0, 1], [0], [1]])


@pytest.fixture(scope="module")
def datas():
    profiles = [load_test_prof_result(name) for name in ("test-2GB-100ms", "test-4GB-150ms", "alpa/bert-1.3b")]
    profiles.append(load_test_prof_result_v2("llama-2-70b"))
    return [
        ModelData(f"m{number}", slo, 1.0, 1.0, profile)
        for number, (slo, profile) in enumerate(zip((0.25, 0.5, 1.0, 2.0), profiles, strict=True))
    ]


@pytest.fixture(scope="module")
def workload(datas):
    return Workload.merge(
        *(
            PoissonProcess(6).generate_workload(data.name, 0, 30, slo=data.slo, seed=number)
            for number, data in enumerate(datas)
            if data.name != "m2"
        )
    )


@pytest.fixture(scope="module")
def text(datas, workload):
    return format_strategy(PLACEMENT, datas, LABELS, CLUSTER, workload)


def section(text, title):
    (found,) = [part for part in text.split("\n\n") if part.startswith(title + "\n")]
    return found


def test_each_group_has_its_devices_config_requests_models_and_memory(text, datas, workload):
    table = section(text, "Groups")
    counts = PlacementEvaluator(datas, CLUSTER, workload).evaluate(PLACEMENT).group_num_requests
    first, second, third = (rf"{count}" for count in counts)
    # groups in their order would tear a node: the one of four devices goes first
    assert re.search(rf"^ +0 +4-5 +1 +2 +{first} +m0 small +1\.00$", table, re.MULTILINE)
    assert re.search(r"^ +m1 large +2\.00\n +used of 6\.50 +3\.00$", table, re.MULTILINE)
    assert re.search(rf"^ +1 +6 +1 +1 +{second} +m0 small +2\.00\n +used of 6\.50 +2\.00$", table, re.MULTILINE)
    assert re.search(rf"^ +2 +0-3 +1 +4 +{third} +m1 large +1\.00\n +used of 6\.50 +1\.00$", table, re.MULTILINE)


def test_each_model_has_its_slo_requests_attainment_and_groups(text, datas, workload):
    table = section(text, "Models")
    evaluation = PlacementEvaluator(datas, CLUSTER, workload).evaluate(PLACEMENT)
    for number, label, slo, groups in [(0, "small", "0.250", "0, 1"), (1, "large", "0.500", "0, 2")]:
        count = workload.num_model_requests(f"m{number}")
        attained = evaluation.model_num_good[number] / count
        assert re.search(rf"^ m{number} {label} +{slo} +{count} +{attained:.4f} +{groups}$", table, re.MULTILINE)
    assert re.search(r"^ m2 idle +1\.000 +0 +no request +none$", table, re.MULTILINE)
    assert re.search(r"^ m3 huge +2\.000 +\d+ +0\.0000 +none$", table, re.MULTILINE)


def test_each_unplaced_model_has_a_reason_for_every_kind_of_group(datas, workload):
    tight = ModelPlacement([ONE, FOUR], [[1], [0]])
    lines = section(format_strategy(tight, datas, LABELS, CLUSTER, workload), "Not placed").splitlines()[1:]
    needs = datas[3].profiling_result.weight_bytes(FOUR) / GB
    assert lines == [
        "  m2 idle: on groups of (1, 1, 1) it needs 2.60 GiB a device, at most 2.50 GiB are free; "
        "on groups of (1, 1, 4) it would fit (0.65 GiB a device), but the search did not take it",
        "  m3 huge: on groups of (1, 1, 1) it has no profile there; "
        f"on groups of (1, 1, 4) it needs {needs:.2f} GiB a device of 6.50",
    ]


def test_the_reason_is_that_of_the_group_with_most_memory_free(datas, workload):
    placement = ModelPlacement([ONE, ONE], [[0, 1], [1]])
    text = format_strategy(placement, datas[:3], LABELS[:3], CLUSTER, workload)
    assert "it needs 2.60 GiB a device, at most 2.50 GiB are free" in section(text, "Not placed")


def test_groups_without_profile_for_a_model_are_told_apart(datas, workload):
    lines = section(
        format_strategy(ModelPlacement([TENSOR], [[]]), datas[:1], LABELS[:1], CLUSTER, workload), "Not placed"
    )
    assert lines.splitlines()[1:] == ["  m0 small: on groups of (1, 2, 1) it has no profile there"]


def test_without_groups_every_model_is_listed_as_unplaced(datas, workload):
    lines = section(format_strategy(ModelPlacement([], []), datas, LABELS, CLUSTER, workload), "Not placed")
    assert lines.splitlines()[1:] == [f"  m{k} {label}: no group" for k, label in enumerate(LABELS)]


def test_nothing_is_said_of_unplaced_models_where_there_are_none(datas, workload):
    text = format_strategy(ModelPlacement([ONE], [[0, 1]]), datas[:2], LABELS[:2], CLUSTER, workload)
    assert "Not placed" not in text


def test_requests_for_models_that_do_not_exist_are_counted(text, datas, workload):
    assert "name a model that does not exist" not in text
    count = workload.num_model_requests("m3")
    partial = format_strategy(ModelPlacement([ONE], [[0]]), datas[:3], LABELS[:3], CLUSTER, workload)
    assert f"{count} requests name a model that does not exist and are not served" in section(partial, "Models")


def test_the_placement_line_is_python_and_the_deployment_lists_replicas(text):
    (line,) = [line for line in text.splitlines() if line.startswith("ModelPlacement(")]
    assert eval(line, {"ModelPlacement": ModelPlacement, "ParallelConfig": ParallelConfig}) == PLACEMENT
    rows = [line.split() for line in section(text, "Deployment").splitlines()[3:]]
    assert rows == [
        ["1", "small", "4,5", "1", "2"],
        ["2", "small", "6", "1", "1"],
        ["3", "large", "4,5", "1", "2"],
        ["4", "large", "0,1,2,3", "1", "4"],
        ["5", "idle", "not", "placed"],
        ["6", "huge", "not", "placed"],
    ]


def test_the_overall_attainment_is_that_of_the_simulation(text, datas, workload):
    evaluation = PlacementEvaluator(datas, CLUSTER, workload).evaluate(PLACEMENT)
    assert (
        f"SLO attainment {evaluation.goodput:.4f} over {len(workload)} requests, "
        f"mean latency {evaluation.latency_mean:.3f} s" in text
    )


def test_text_is_ascii_without_trailing_blanks_or_wrapped_tables(text):
    assert text.isascii()
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.fixture(scope="module")
def wide_text(workload):
    profile = load_test_prof_result_v2("falcon-40b")
    data = ModelData("m0", 1.0, 1.0, 1.0, profile)
    placement = ModelPlacement([ParallelConfig(1, 8, 8)], [[0]])
    return format_strategy(placement, [data], [LONG_LABEL], ClusterEnv(64, 48 * GB), workload)


LONG_LABEL = "an-organisation/a-model-with-a-rather-long-name-instruct-v0.3"


@pytest.mark.parametrize(("title", "devices"), [("Groups", "0-63"), ("Deployment", ",".join(map(str, range(64))))])
def test_many_devices_and_long_names_are_not_cut_off(wide_text, title, devices):
    # a cell may be folded over several lines
    words = re.sub(r"\s+", "", section(wide_text, title))
    assert devices in words
    assert LONG_LABEL in words
    assert wide_text.isascii()
