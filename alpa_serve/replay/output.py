"""A replay as text and as JSON, beside what the simulator predicts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from alpa_serve.report.plain_table import plain_table
from alpa_serve.simulator.stats import format_stats

if TYPE_CHECKING:
    from alpa_serve.replay.results import ReplayResult
    from alpa_serve.simulator.stats import StatsResult


def format_replay(result: ReplayResult, stats: StatsResult, predicted: StatsResult | None = None) -> str:
    """Write a replay as text.

    Parameters
    ----------
    result : ReplayResult
    stats : StatsResult
        Its statistics.
    predicted : StatsResult, optional
        Those of a simulation of the same requests.
    """
    sections = [format_stats(stats), _counts_table(result), _lateness_table(result)]
    if result.failures:
        sections.append(plain_table(("#requests", "why"), [(str(n), why) for why, n in result.failures.items()]))
    if predicted is not None:
        sections.append("Simulated and served\n" + _comparison_table(predicted, stats))
    return "\n\n".join(sections)


def _counts_table(result: ReplayResult) -> str:
    counts = result.counts()
    return plain_table([f"#{name}" for name in counts], [[str(number) for number in counts.values()]])


def _lateness_table(result: ReplayResult) -> str:
    late = result.lateness
    columns = ("sent late (ms)", "#mean", "#p50", "#p99", "#max")
    return plain_table(columns, [("", *(f"{1e3 * s:.2f}" for s in (late.mean, late.p50, late.p99, late.max)))])


def _comparison_table(predicted: StatsResult, served: StatsResult) -> str:
    """Return the table of what each model attains, and all together."""
    columns = [
        "model",
        "#requests",
        "#attainment simulated",
        "#served",
        "#difference",
        "#mean latency (s) simulated",
        "#served",
        "#p99 latency (s) simulated",
        "#served",
    ]
    by_name = {model.name: model for model in predicted.per_model_stats}
    rows = [
        [
            model.name,
            str(model.num_requests),
            *_attainments(by_name[model.name].goodput, model.goodput),
            *(f"{stats.latency_mean:.3f}" for stats in (by_name[model.name], model)),
            *(f"{stats.latency_p99:.3f}" for stats in (by_name[model.name], model)),
        ]
        for model in served.per_model_stats
    ]
    means = (f"{stats.latency_mean:.3f}" for stats in (predicted, served))
    rows.append(["all", str(served.num_requests), *_attainments(predicted.goodput, served.goodput), *means, "", ""])
    return plain_table(columns, rows)


def _attainments(predicted: float, served: float) -> list[str]:
    return [f"{predicted:.4f}", f"{served:.4f}", f"{served - predicted:+.4f}"]


def replay_json(result: ReplayResult, stats: StatsResult, predicted: StatsResult | None = None, **about: object) -> str:
    """Return a replay as a JSON object: seconds, requests and requests per second.

    Parameters
    ----------
    result, stats, predicted
        As :func:`format_replay` takes them.
    **about
        Further entries, which come first.
    """
    late = result.lateness
    document = {
        **about,
        "stopped": result.stopped,
        "latency_from": "schedule" if result.from_schedule else "sending",
        "counts": result.counts(),
        "failures": dict(result.failures),
        "lateness_s": {"mean": late.mean, "p50": late.p50, "p99": late.p99, "max": late.max},
        "served": _as_dict(stats),
        "simulated": None if predicted is None else _as_dict(predicted),
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _as_dict(stats: StatsResult) -> dict[str, Any]:
    figures = (
        "name",
        "num_requests",
        "goodput",
        "throughput",
        "latency_mean",
        "latency_std",
        "latency_p90",
        "latency_p99",
    )
    return {
        "num_requests": stats.num_requests,
        "request_rate": stats.request_rate,
        "goodput": stats.goodput,
        "latency_mean": stats.latency_mean,
        "models": [{name: getattr(model, name) for name in figures} for model in stats.per_model_stats],
    }
