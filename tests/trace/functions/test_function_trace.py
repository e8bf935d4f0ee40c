import logging
import math
import re

import numpy as np
import pytest

from alpa_serve.errors import InvalidConfigError, InvalidWorkloadError, UnknownNameError
from alpa_serve.simulator.workload import GammaProcess, ParetoProcess, PoissonProcess, WorkloadFromTrace
from alpa_serve.trace import Trace, TraceReplay, report_group_stats

NUM_GOLDEN = 28
MODELS = ["m0", "m1", "m2"]


def test_every_golden_replay_is_tested(golden):
    assert len(golden("trace_replay")) == NUM_GOLDEN


@pytest.mark.parametrize("number", range(NUM_GOLDEN))
def test_replay_equals_the_golden_one(number, golden, golden_trace, random_state_untouched):
    case = golden("trace_replay")[number]
    trace = golden_trace(case["trace"], case["synthetic_seed"], case["num_functions"])
    other = ("trace", "synthetic_seed", "num_functions", "result")
    replays = trace.replay(**{name: value for name, value in case.items() if name not in other})
    assert list(replays) == case["models"] == list(case["result"])
    for model, expected in case["result"].items():
        replay = replays[model]
        assert isinstance(replay, TraceReplay)
        assert (replay.model, len(replay), len(replay.arrivals)) == (model, expected["count"], expected["count"])
        assert replay.arrivals[:3] == pytest.approx(expected["first"], abs=1e-9, rel=0)
        assert replay.arrivals.sum() == pytest.approx(expected["sum"], rel=1e-12)
        assert replay.rate() == pytest.approx(expected["rate"], rel=1e-12)
        assert replay.cv() == pytest.approx(expected["cv"], rel=1e-9)
        workload = replay.to_workload(0.5)
        assert workload.arrivals.tolist() == sorted(replay.arrivals)
        assert set(workload.slos) == {0.5}
        assert workload.model_names == (model,)


# gamma replays of data of known rate and cv


def gamma_seconds(rate, cv, days, seed):
    return GammaProcess(rate, cv).generate_arrivals(0, days * 86400, seed)


# the 1e-6 s that AlpaServe adds to gaps hide the shortest ones, so that larger cvs come out too small
@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (2.0, 0.5)])
def test_gamma_replay_of_v2_recovers_rate_and_cv(trace_of, cv, factors):
    rate, (rate_scale, cv_scale) = 2.0, factors
    trace = trace_of("azure_v2", {"f": gamma_seconds(rate, cv, 1, seed=1)})
    # intervals long enough that a fit to a few gaps does not bias the cv
    replay = trace.replay(
        ["m"],
        "stripe",
        "0.0.0",
        "1.0.0",
        "gamma",
        14400,
        rate_scale_factor=rate_scale,
        cv_scale_factor=cv_scale,
        seed=5,
    )["m"]
    assert replay.rate() == pytest.approx(rate * rate_scale, rel=0.05)
    assert replay.cv() == pytest.approx(cv * cv_scale, rel=0.05)
    assert replay.to_workload(1).cv == pytest.approx(cv * cv_scale, rel=0.05)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("rate_scale", [1.0, 3.0])
def test_gamma_replay_of_v1_recovers_the_rate_and_has_the_cv_asked_for(trace_of, cv, rate_scale):
    counts = np.random.RandomState(3).poisson(60 * 1.5, (2, 20160)).astype(np.int32)
    trace = trace_of("azure_v1", {"f0": counts[0], "f1": counts[1]})
    replay = trace.replay(
        ["m"], "stripe", "3.0.0", "4.0.0", "gamma", 14400, rate_scale_factor=rate_scale, cv_scale_factor=cv, seed=5
    )["m"]
    assert replay.rate() == pytest.approx(2 * 1.5 * rate_scale, rel=0.05)
    assert replay.cv() == pytest.approx(cv, rel=0.05)


# a plain reading of semantics.md


def plain_replay(arrivals, start, end, interval, distribution, seed):
    """The arrivals of one model, interval by interval; scipy fits."""
    import scipy.stats

    drawn = []
    for i in range(math.ceil((end - start) / interval)):
        low = start + i * interval
        inside = arrivals[(arrivals >= low) & (arrivals < min(low + interval, end))]
        gaps = np.diff(inside) + 1e-6
        if len(gaps) < (2 if distribution == "gamma" else 1):
            continue
        observed = len(inside) / interval
        if distribution == "pareto":
            process = ParetoProcess(*scipy.stats.pareto.fit(gaps + 1, floc=0, fscale=1)[:1], 1.0, 0.0)
        else:
            if distribution == "gamma":
                shape, _, scale = scipy.stats.gamma.fit(gaps, floc=0)
            else:
                shape, scale = 1.0, scipy.stats.expon.fit(gaps, floc=0)[1]
            rate = 1 / (shape * scale)
            process = GammaProcess(observed if rate > 5 * observed else rate, shape**-0.5)
        drawn.append(process.generate_arrivals(low, interval, seed))
        seed += 1
    return np.concatenate([np.empty(0), *drawn]), seed


@pytest.mark.parametrize("distribution", ["exponential", "gamma", "pareto"])
@pytest.mark.parametrize("interval", [100, 700.5])
def test_replay_of_sparse_and_bursty_functions_is_the_plain_one(trace_of, distribution, interval):
    # a Pareto fit to two gaps of next to nothing makes more requests than anyone has memory for
    cv = 1 if distribution == "pareto" else 5
    functions = {f"f{i}": gamma_seconds(0.02 * (i + 1), cv, 0.2, seed=i) for i in range(5)}
    trace = trace_of("azure_v2", functions | {"late": np.array([86400.0])})
    replays = trace.replay(["a", "b"], "stripe", "0.0.30", "0.4.0", distribution, interval, seed=9)
    assert min(map(len, replays.values())) > 20
    seed = 9
    for model, offset in (("a", 0), ("b", 1)):
        merged = np.sort(np.concatenate([functions[f"f{i}"] for i in range(offset, 5, 2)]))
        merged = merged[(merged >= 1800) & (merged < 14400)]
        expected, seed = plain_replay(merged, 1800, 14400, interval, distribution, seed)
        assert replays[model].arrivals == pytest.approx(expected, rel=1e-9)


def test_v1_bins_have_processes_of_their_counts_and_empty_ones_take_no_seed(trace_of):
    counts = np.zeros((3, 2880), dtype=np.int32)
    counts[0, [0, 9, 30]] = 5, 7, 600
    counts[1, 45] = 300
    trace = trace_of("azure_v1", {"f0": counts[0], "f1": counts[1], "idle": counts[2]})
    replays = trace.replay(["a", "b"], start_time="0.0.0", end_time="0.0.55", interval_seconds=600, seed=4)
    expected = [
        PoissonProcess(12 / 600).generate_arrivals(0, 600, 4),
        PoissonProcess(1).generate_arrivals(1800, 600, 5),
    ]
    assert replays["a"].arrivals == pytest.approx(np.concatenate(expected), rel=1e-12)
    assert replays["b"].arrivals == pytest.approx(PoissonProcess(0.5).generate_arrivals(2400, 600, 6), rel=1e-12)
    assert trace.slice("0.0.0", "0.0.10").keys() == {"f0"}


def test_vanilla_replays_take_the_invocations_scaled_in_time_and_repeated(trace_of):
    trace = trace_of("azure_v2", {"f": np.array([10.0, 60.0, 90.0, 240.0]), "g": np.array([70.0, 180.0])})
    replay = trace.replay_vanilla(["m"], "stripe", "0.0.1", "0.0.4")["m"]
    assert replay.arrivals.tolist() == [60, 70, 90, 180]
    fast = trace.replay(["m"], "stripe", "0.0.1", "0.0.4", "vanilla", time_scale_factor=4, replication_factor=2)["m"]
    assert fast.arrivals.tolist() == [60, 60, 62.5, 62.5, 67.5, 67.5, 90, 90]
    assert (fast.start_seconds, fast.end_seconds, fast.duration_seconds, fast.duration) == (60, 240, 180, 45)
    assert fast.rate() == 8 / 45


def test_processes_that_would_fill_the_memory_are_refused_with_the_interval(trace_of):
    trace = trace_of("azure_v2", {"f": np.array([100.0, 700.0, 700.0, 1300.0])})
    with pytest.raises(InvalidWorkloadError, match=r"pareto processes .* from 600 s on makes 1e\+06 a second.*another"):
        trace.replay(["m"], arrival_distribution="pareto")
    with pytest.raises(InvalidWorkloadError, match=r"exponential processes .* smaller rate_scale_factor"):
        trace.replay(["m"], rate_scale_factor=1e9)
    with pytest.raises(InvalidWorkloadError, match=r"replication_factor makes 4e\+08 requests"):
        trace.replay(["m"], arrival_distribution="vanilla", replication_factor=10**8)


# mapping, slices and what is refused


def test_functions_are_dealt_in_turn_or_by_neighbourhood(trace_of):
    trace = trace_of("azure_v2", {f"f{i}": np.array([float(i)]) for i in range(5)})
    assert list(trace.map_model(MODELS, trace.function_names).items()) == [
        ("f0", "m0"), ("f1", "m1"), ("f2", "m2"), ("f3", "m0"), ("f4", "m1")
    ]  # fmt: skip
    assert list(trace.map_model(MODELS, trace.function_names, "round_robin").values()) == ["m0", "m0", "m1", "m1", "m2"]
    assert not trace.map_model(MODELS, [])


def test_a_model_without_functions_has_no_arrivals(trace_of):
    trace = trace_of("azure_v2", {"f": np.arange(100.0)})
    for distribution in ("exponential", "gamma", "vanilla", "pareto"):
        replays = trace.replay(MODELS, arrival_distribution=distribution)
        assert [len(replay) > 0 for replay in replays.values()] == [True, False, False]
        assert (replays["m2"].rate(), replays["m2"].cv(), len(replays["m2"].to_workload(1))) == (0, 0, 0)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("0.0.0", (0, 0, 0)), ("13.23.60", (13, 23, 60)), ("1.24.0", (1, 24, 0)), ("007.01.5", (7, 1, 5))],
)
def test_times_are_read(text, parts):
    assert Trace.timestr_to_dhm(text) == parts


@pytest.mark.parametrize("text", ["", "1.2", "1.2.3.4", "1.25.0", "1.2.61", "-1.0.0", "a.b.c", " 1.2.3", 1.2, None])
def test_times_of_another_form_are_refused(text):
    with pytest.raises(InvalidConfigError, match="day.hour.minute.*such as '0.9.30'; got " + re.escape(repr(text))):
        Trace.timestr_to_dhm(text)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("azure_v1", {"arrival_distribution": "vanilla"}, "only 'exponential' and 'gamma'.*not 'vanilla'"),
        ("azure_v1", {"arrival_distribution": "pareto"}, "only 'exponential' and 'gamma'.*not 'pareto'"),
        ("azure_v1", {"interval_seconds": 90}, "interval_seconds must be a multiple of 60"),
        ("azure_v1", {"time_scale_factor": 2.0}, "time_scale_factor needs 'vanilla' arrivals of azure_v2"),
        ("azure_v1", {"replication_factor": 2}, "replication_factor needs 'vanilla' arrivals of azure_v2"),
        ("azure_v2", {"replication_factor": 2}, "replication_factor needs 'vanilla' arrivals"),
        ("azure_v2", {"time_scale_factor": 2.0}, "time_scale_factor needs 'vanilla' arrivals"),
        (
            "azure_v2",
            {"arrival_distribution": "vanilla", "time_scale_factor": 2.0, "rate_scale_factor": 2.0},
            "time_scale_factor cannot be combined",
        ),
        ("azure_v2", {"arrival_distribution": "vanilla", "rate_scale_factor": 2.0}, "rate_scale_factor needs"),
        ("azure_v2", {"arrival_distribution": "pareto", "rate_scale_factor": 2.0}, "rate_scale_factor needs"),
        ("azure_v2", {"arrival_distribution": "vanilla", "time_scale_factor": 1e9}, "less than a second"),
        ("azure_v2", {"cv_scale_factor": 2.0}, "cv_scale_factor needs 'gamma' arrivals, not 'exponential'"),
        ("azure_v2", {"arrival_distribution": "vanilla", "cv_scale_factor": 2.0}, "cv_scale_factor needs 'gamma'"),
        ("azure_v1", {"cv_scale_factor": 2.0}, "cv_scale_factor needs 'gamma'"),
        ("azure_v2", {"interval_seconds": 0}, "interval_seconds must be a finite number > 0"),
        ("azure_v2", {"interval_seconds": 1e-6}, "into more than 2000000 intervals"),
        ("azure_v2", {"rate_scale_factor": -1.0}, "rate_scale_factor must be"),
        ("azure_v2", {"rate_scale_factor": math.nan}, "rate_scale_factor must be"),
        ("azure_v2", {"replication_factor": 0, "arrival_distribution": "vanilla"}, "replication_factor must be"),
        ("azure_v2", {"end_time": "14.0.1"}, "must lie within the 14 days"),
        ("azure_v2", {"start_time": "1.0.0", "end_time": "1.0.0"}, "end after it starts"),
        ("azure_v2", {"start_time": "2.0.0", "end_time": "1.0.0"}, "end after it starts"),
        ("azure_v2", {"models": []}, "models must be a list of one name or more"),
        ("azure_v2", {"models": "m0"}, "models must be a list"),
        ("azure_v2", {"models": ["m0", "m0"]}, "must differ"),
        ("azure_v2", {"seed": -1}, "seed"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(trace_of, name, arguments, message):
    data = np.ones(20160, dtype=np.int32) if name == "azure_v1" else np.arange(0, 100, 0.5)
    with pytest.raises(InvalidConfigError, match=message):
        trace_of(name, {"f": data}).replay(**{"models": MODELS} | arguments)


def test_unknown_names_are_refused_with_the_known_ones(trace_of):
    trace = trace_of("azure_v2", {"f": np.arange(10.0)})
    with pytest.raises(UnknownNameError, match="unknown arrival distribution 'poisson'; known: exponential,"):
        trace.replay(MODELS, arrival_distribution="poisson")
    with pytest.raises(UnknownNameError, match="unknown model mapping strategy 'random'; known: stripe, round_robin"):
        trace.replay(MODELS, "random")
    with pytest.raises(UnknownNameError, match="unknown model mapping strategy"):
        trace.map_model(MODELS, ["f"], "random")


def test_a_trace_of_fewer_days_has_no_slice_beyond_them(trace_of):
    trace = trace_of("azure_v1", {"f": np.ones(2880, dtype=np.int32)})
    with pytest.raises(InvalidConfigError, match="must lie within the 2 days"):
        trace.slice()
    assert trace.minute_counts("1.23.0", "1.24.0").tolist() == [1] * 60
    assert trace.minute_counts().tolist() == [1] * 2880
    assert trace.minute_counts("1.23.0").tolist() == [1] * 60
    assert WorkloadFromTrace(1.0, trace).minute_counts.tolist() == [1] * 2880
    with pytest.raises(InvalidConfigError, match=r"from 2\.0\.0 to 2\.0\.0 must lie within the 2 days"):
        trace.minute_counts("2.0.0")


def test_what_a_trace_and_a_group_of_replays_hold_is_returned_and_logged_not_printed(trace_of, caplog, capsys):
    functions = {f"f{i}": np.arange(0.0, 86400, 60 * (i + 1)) for i in range(20)}
    trace = trace_of("azure_v2", functions)
    with caplog.at_level(logging.INFO, logger="alpa_serve"):
        stats = trace.report_stats()
        group = report_group_stats(trace.replay(MODELS, end_time="1.0.0"))
    total = sum(map(len, functions.values()))
    assert (stats["num_functions"], stats["num_invocations"], stats["num_days"]) == (20, total, 14)
    assert stats["rate"] == pytest.approx(total / (14 * 86400))
    assert stats["share_top_1_percent"] == pytest.approx(1440 / total)
    assert stats["share_top_10_percent"] == pytest.approx((1440 + 720) / total)
    assert group["num_models"] == 3
    assert group["rate_min"] <= group["rate_median"] <= group["rate_max"] <= group["rate"]
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert f"num_invocations {total}" in caplog.text
    assert capsys.readouterr().out == ""
    with pytest.raises(InvalidConfigError, match="at least one replay"):
        report_group_stats([])


def test_estimators_are_at_hand_on_the_trace():
    arrivals = GammaProcess(3, 2).generate_arrivals(0, 20_000, seed=1)
    assert Trace.estimate_gamma(arrivals) == pytest.approx((3, 2), rel=0.03)
    assert Trace.estimate_exponential(arrivals) == pytest.approx(3, rel=0.03)
    assert Trace.estimate_pareto(arrivals)[1:] == (1, 0)
