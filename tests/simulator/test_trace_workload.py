import random
import sys
import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import AlpaServeError, InvalidConfigError, InvalidTraceError, UnknownNameError
from alpa_serve.simulator.workload import WorkloadFromTrace

LATENCIES = {
    "llama-2-7b": (0.095533915, 0.024334018),
    "gptj-6b": (0.092631068, 0.020843485),
    "falcon-40b": (0.6126346445083621, 0.12438445138931271),
}
FOUR_SMALL = ["llama-2-7b", "llama-2-13b", "falcon-7b", "gptj-6b"]
EIGHT = [*FOUR_SMALL, "llama-2-70b", "llama-2-70b", "falcon-40b", "falcon-40b"]
REGULAR = ["llama-2-7b", "gptj-6b", "falcon-40b", "llama-2-13b"]
# (name, load time) of every model
MODEL_SETS = {
    "large": [("llama-2-70b", 0), ("falcon-40b", 5), ("llama-2-7b", 10), ("falcon-40b", 15)],
    "regular": [(name, 3 * i) for i, name in enumerate(REGULAR * 2)],
    "twentyone": [(name, i) for i, name in enumerate([*EIGHT, *EIGHT, *FOUR_SMALL, "llama-2-70b"])],
}
TRACE_FILES = {"code": "AzureLLMInferenceTrace_code.csv", "conversation": "AzureLLMInferenceTrace_conv.csv"}


def model_list(models):
    return [
        {"id": i, "name": name, "load_time": load_time, "output_length": 20}
        for i, (name, load_time) in enumerate(models, start=1)
    ]


def trace_of(minute_counts, start="2023-11-16 18:15:00"):
    """A trace with these requests per minute."""
    minutes = np.repeat(np.arange(len(minute_counts)), minute_counts)
    return pd.DataFrame({"TIMESTAMP": pd.Timestamp(start) + pd.to_timedelta(minutes, unit="min")})


def test_workloads_of_the_real_traces_are_maveriqs(golden, shared_data):
    traces = {}
    for case in golden("trace_workloads"):
        name = case["trace"]
        if name not in traces:
            traces[name] = pd.read_csv(shared_data(TRACE_FILES[name]), parse_dates=["TIMESTAMP"])
        process = WorkloadFromTrace(case["scale"], traces[name])
        workload = process.generate_workload(model_list(MODEL_SETS[case["model_set"]]), slo=case["slo"])
        assert len(workload) == case["count"]
        np.testing.assert_allclose(workload.arrivals[: len(case["first"])], case["first"], rtol=1e-9)
        assert workload.arrivals[-1] == pytest.approx(case["last"], rel=1e-9)
        assert workload.arrivals.sum() == pytest.approx(case["sum"], rel=1e-9)
        requests = workload.requests
        assert [request.model_name for request in requests[:12]] == case["first_models"]
        assert {name: workload.num_model_requests(name) for name in workload.model_names} == case["per_model"]
        assert {r.model_name: r.slo for r in requests} == pytest.approx(case["slo_by_model"])


def test_text_timestamps_count_as_dates_do(shared_data):
    path = shared_data(TRACE_FILES["code"])
    as_text, as_dates = pd.read_csv(path), pd.read_csv(path, parse_dates=["TIMESTAMP"])
    assert not pd.api.types.is_datetime64_any_dtype(as_text["TIMESTAMP"])
    np.testing.assert_array_equal(
        WorkloadFromTrace(1, as_text).minute_counts, WorkloadFromTrace(1, as_dates).minute_counts
    )


def test_timestamps_are_rounded_to_the_nearest_minute_and_empty_minutes_count():
    stamps = ["2023-11-16 00:00:29", "2023-11-16 00:00:31", "2023-11-16 00:01:29", "2023-11-16 00:04:00"]
    assert WorkloadFromTrace(1, pd.DataFrame({"TIMESTAMP": stamps})).minute_counts.tolist() == [1, 2, 0, 0, 1]


def test_the_order_of_the_rows_does_not_matter():
    trace = trace_of([3, 0, 2, 5])
    shuffled = trace.sample(frac=1, random_state=0)
    assert WorkloadFromTrace(1, shuffled).minute_counts.tolist() == [3, 0, 2, 5]


minute_counts = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(lambda counts: counts[0] and counts[-1])
load_times = st.lists(st.integers(0, 20), min_size=1, max_size=4)
scales = st.sampled_from([0.1, 0.4, 1, 2.5])


@given(minute_counts, load_times, scales, st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_every_request_of_a_step_with_a_loaded_model_comes_once(counts, loads, scale, seed):
    process = WorkloadFromTrace(scale, trace_of(counts))
    steps = [int(count * scale) for count in counts] * 2
    assert process.step_counts.tolist() == steps
    workload = process.generate_workload(model_list([("gptj-6b", load) for load in loads]), seed=seed)

    loaded = [sum(load <= step for load in loads) for step in range(len(steps))]
    expected = [(step, num) for step, (count, num) in enumerate(zip(steps, loaded, strict=True)) for _ in range(count)]
    expected = [(30 * step + 90 * num, num) for step, num in expected if num]
    assert len(workload) == len(expected)
    for arrival, request, (begin, num_loaded) in zip(workload.arrivals, workload.requests, expected, strict=True):
        assert begin <= arrival < begin + 29.9
        assert int(request.model_name.removeprefix("m")) <= num_loaded


def test_slos_are_the_factor_times_the_time_of_the_tokens():
    models = [
        {"id": i, "name": name, "load_time": 0, "output_length": length}
        for i, (name, length) in enumerate([("llama-2-7b", 20), ("gptj-6b", 200), ("falcon-40b", 0)], start=3)
    ]
    workload = WorkloadFromTrace(1, trace_of([60])).generate_workload(models, slo=2)
    expected = {
        f"m{model['id']}": 2 * (LATENCIES[model["name"]][0] + LATENCIES[model["name"]][1] * model["output_length"])
        for model in models
    }
    assert {request.model_name: request.slo for request in workload.requests} == pytest.approx(expected)


def test_the_seed_decides_the_workload_and_42_is_the_default(random_state_untouched):
    process, models = WorkloadFromTrace(1, trace_of([30, 30])), model_list(MODEL_SETS["large"])
    default, again, other = (process.generate_workload(models, **seed) for seed in ({}, {"seed": 42}, {"seed": 1}))
    assert list(default.requests) == list(again.requests)
    assert default.arrivals.tolist() != other.arrivals.tolist()


def test_a_scale_that_leaves_no_request_gives_an_empty_workload():
    assert len(WorkloadFromTrace(0.1, trace_of([5, 3])).generate_workload(model_list([("gptj-6b", 0)]))) == 0


def test_models_that_never_load_get_no_request():
    assert len(WorkloadFromTrace(1, trace_of([5])).generate_workload(model_list([("gptj-6b", 2)]))) == 0


def test_arrivals_without_models_are_those_of_the_steps():
    process = WorkloadFromTrace(2, trace_of([3, 0, 4]))
    arrivals = process.generate_arrivals(5, 1000, seed=1)
    assert np.bincount(((arrivals - 5) // 30).astype(int)).tolist() == [6, 0, 8, 6, 0, 8]
    assert process.generate_arrivals(5, 60, seed=1).tolist() == arrivals[:6].tolist()
    assert process.params() == (2, 3)


def test_the_stated_rate_and_cv_are_those_of_the_arrivals():
    process = WorkloadFromTrace(1, trace_of([200, 5, 0, 40] * 50 + [7]))
    gaps = np.concatenate([np.diff(process.generate_arrivals(0, 1e9, seed)) for seed in range(5)])
    assert process.rate() == pytest.approx(1 / gaps.mean(), rel=0.01)
    assert process.cv() == pytest.approx(gaps.std() / gaps.mean(), rel=0.02)


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (pd.DataFrame({"time": ["2023-11-16"]}), "no column TIMESTAMP; it has time"),
        (pd.DataFrame({"TIMESTAMP": []}), "has no request"),
        (pd.DataFrame({"TIMESTAMP": ["2023-11-16", "yesterday"]}), "row 1 of the trace: TIMESTAMP 'yesterday'"),
        (pd.DataFrame({"TIMESTAMP": ["2023-11-16", None]}), "row 1 of the trace"),
        (pd.DataFrame({"TIMESTAMP": [pd.Timestamp("2023-11-16"), pd.NaT]}), "row 1 of the trace"),
        (pd.DataFrame({"TIMESTAMP": [1.5, 2.5]}), "must be dates, got numbers"),
        (pd.DataFrame({"TIMESTAMP": ["1900-01-01", "2023-11-16"]}), "the trace spans"),
        ({"TIMESTAMP": ["2023-11-16"]}, "DataFrame with a TIMESTAMP column, .*minute_counts.*, got dict"),
        (None, "got NoneType"),
    ],
)
def test_a_bad_trace_is_refused(trace, message):
    with pytest.raises(InvalidTraceError, match=message):
        WorkloadFromTrace(1, trace)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=3))
@settings(deadline=None, max_examples=60)
def test_random_text_for_timestamps_is_refused_or_counted(texts):
    try:
        process = WorkloadFromTrace(1, pd.DataFrame({"TIMESTAMP": texts}))
    except InvalidTraceError:
        return
    assert process.minute_counts.sum() == len(texts)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "1"])
def test_a_bad_rate_scale_is_refused(scale):
    with pytest.raises(InvalidConfigError, match="rate_scale"):
        WorkloadFromTrace(scale, trace_of([1]))


GOOD_MODEL = {"id": 1, "name": "gptj-6b", "load_time": 0, "output_length": 20}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "gpt-5"}, "unknown model 'gpt-5'; known: .*gptj-6b"),
        ({"load_time": -1}, "load_time of entry 0"),
        ({"load_time": 1.5}, "load_time of entry 0"),
        ({"output_length": float("nan")}, "output_length of entry 0"),
    ],
)
def test_a_bad_model_is_refused(changed, message):
    with pytest.raises(AlpaServeError, match=message):
        WorkloadFromTrace(1, trace_of([5])).generate_workload([{**GOOD_MODEL, **changed}])


@pytest.mark.parametrize("missing", list(GOOD_MODEL))
def test_a_model_that_lacks_a_field_is_refused(missing):
    model = {key: value for key, value in GOOD_MODEL.items() if key != missing}
    with pytest.raises(InvalidConfigError, match=f"entry 0 of model_list lacks {missing}"):
        WorkloadFromTrace(1, trace_of([5])).generate_workload([model])


@pytest.mark.parametrize("slo", [0, -1, float("nan")])
def test_a_bad_slo_factor_is_refused(slo):
    with pytest.raises(InvalidConfigError, match="slo"):
        WorkloadFromTrace(1, trace_of([5])).generate_workload([GOOD_MODEL], slo=slo)


@pytest.fixture
def fake_datasets(monkeypatch):
    """Return a function that puts a `datasets` module in place whose load_dataset returns, or raises, what is given."""

    def install(outcome):
        asked = []

        def load_dataset(name, split):
            asked.append((name, split))
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        module = types.ModuleType("datasets")
        module.load_dataset = load_dataset
        monkeypatch.setitem(sys.modules, "datasets", module)
        return asked

    return install


def generate_with_dataset(seed=42):
    return WorkloadFromTrace(1, trace_of([40])).generate_workload([GOOD_MODEL], dataset="some/name", seed=seed)


def test_without_dataset_there_are_no_prompts_and_nothing_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    workload = WorkloadFromTrace(1, trace_of([5])).generate_workload([GOOD_MODEL])
    assert {request.data for request in workload.requests} == {None}


def test_prompts_come_from_the_shuffled_dataset_from_the_65th_on(fake_datasets, random_state_untouched):
    texts = [f"prompt {i}\nline {'x' * 600}" for i in range(70)]
    asked = fake_datasets([{"conversations": [{"text": text}, {"text": "answer"}]} for text in texts])
    workload = generate_with_dataset(seed=7)
    assert asked == [("some/name", "train")]
    shuffled = list(texts)
    random.Random(7).shuffle(shuffled)
    expected = [shuffled[(n + 65) % 70].replace("\n", "CHANGELINE")[:512] for n in range(len(workload))]
    assert [request.data for request in workload.requests] == expected
    assert len(workload) == 80


def test_prompts_do_not_change_the_requests(fake_datasets):
    fake_datasets([{"conversations": [{"text": "prompt"}]}])
    plain = WorkloadFromTrace(1, trace_of([40])).generate_workload([GOOD_MODEL])
    with_prompts = generate_with_dataset()
    assert with_prompts.arrivals.tolist() == plain.arrivals.tolist()
    assert with_prompts.model_ids.tolist() == plain.model_ids.tolist()


def test_a_dataset_that_cannot_be_loaded_is_a_clear_error_that_says_how_to_go_on(fake_datasets):
    fake_datasets(ConnectionError("no network"))
    with pytest.raises(UnknownNameError, match=r"cannot load the data set 'some/name': no network.*leave dataset out"):
        generate_with_dataset()


@pytest.mark.parametrize("rows", [[], [{"text": "prompt"}], [{"conversations": []}], [None]])
def test_a_dataset_of_another_form_is_a_clear_error(fake_datasets, rows):
    fake_datasets(rows)
    with pytest.raises(AlpaServeError, match="the data set 'some/name' has"):
        generate_with_dataset()


class FramedTrace:
    def __init__(self, frame):
        self.frame = frame

    def to_frame(self):
        return self.frame


class CountedTrace:
    def __init__(self, counts):
        self.counts = counts

    def minute_counts(self):
        return np.array(self.counts)


def test_a_trace_with_a_table_or_with_counts_gives_the_workload_of_the_table():
    frame = trace_of([3, 0, 5])
    models = model_list(MODEL_SETS["large"])
    expected = WorkloadFromTrace(2, frame).generate_workload(models)
    for trace in (FramedTrace(frame), CountedTrace([3, 0, 5])):
        workload = WorkloadFromTrace(2, trace).generate_workload(models)
        assert workload.arrivals.tolist() == expected.arrivals.tolist()
        assert workload.model_ids.tolist() == expected.model_ids.tolist()
    with pytest.raises(InvalidTraceError, match="counts of requests only"):
        WorkloadFromTrace(2, CountedTrace([3])).generate_workload(models, tokens="trace")


def test_a_table_may_have_columns_named_as_a_trace_names_its_methods():
    frame = trace_of([3, 1]).assign(to_frame=1, minute_counts=2)
    assert WorkloadFromTrace(1, frame).minute_counts.tolist() == [3, 1]


@pytest.mark.parametrize("counts", [[], [0, 0], [1, -1], [0.5], [[1]], ["1"], [True]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(InvalidTraceError, match=r"requests per minute must be whole|no request"):
        WorkloadFromTrace(1, CountedTrace(counts))


def test_step_counts_are_played_once_and_as_they_are():
    process, models = WorkloadFromTrace.from_step_counts([3, 0, 2]), [GOOD_MODEL]
    assert process.step_counts.tolist() == process.minute_counts.tolist() == [3, 0, 2]
    assert (process.params(), process.rate()) == ((1.0, 3), 5 / 90)
    arrivals = process.generate_workload(models).arrivals - 90
    assert np.bincount((arrivals // 30).astype(int)).tolist() == [3, 0, 2]
    with pytest.raises(InvalidTraceError, match="requests per step must be whole numbers >= 0"):
        WorkloadFromTrace.from_step_counts([1, -1])
    with pytest.raises(InvalidTraceError, match="no tokens to take"):
        process.generate_workload(models, tokens="trace")
