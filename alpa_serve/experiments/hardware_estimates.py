"""What recorded runs tell about service times and serving rules: calibration of a replay by other runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.experiments.hardware_replay import ServiceTable
from alpa_serve.experiments.maveriq import OUTPUT_LENGTH
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import MAVERIQ

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pandas as pd

    from alpa_serve.experiments.hardware_runs import RecordedRun
    from alpa_serve.scheduling import ServingRules

BUSY_WITHIN_S = 1.0
"""A request that begins at most this many seconds after the one before it on its devices finds a busy group.

After longer pauses service takes longer: with such requests the mean is 0.5 % higher, which near saturation becomes
6 % of the mean latency.
"""

MIN_BUSY_REQUESTS = 20
"""Fewer of them on a model and config, and its mean service is taken over all requests."""


SHIPPED_FROM = (
    "AlpaServe*__large__code__0.1__5.0",
    "AlpaServe*__large__conversation__0.1__5.0",
    "AlpaServe*__large__conversation__0.2__5.0",
    "AlpaServe__large__code__0.1__5.0",
    "AlpaServe__regular__code__0.4__5.0",
)
"""The runs from which the constants of :data:`~alpa_serve.scheduling.MAVERIQ` come (:func:`estimate_rules`)."""


def other_runs(runs: Iterable[RecordedRun], run: RecordedRun) -> list[RecordedRun]:
    """Return the runs that are other recordings than `run`, by name and by content: what it may be predicted from."""
    return [other for other in runs if other.experiment != run.experiment and not _is_same_recording(other, run)]


def runs_of_other_placements(runs: Iterable[RecordedRun], run: RecordedRun) -> list[RecordedRun]:
    """Return the other runs that had another placement than `run`, as far as both were loaded when they ended."""
    own = _placed(run)
    return [other for other in other_runs(runs, run) if not (_placed(other) <= own or own <= _placed(other))]


def _placed(run: RecordedRun) -> set[tuple[str, tuple[int, ...], ParallelConfig]]:
    return {(replica.model, replica.devices, replica.config) for replica in run.replicas.values()}


def _is_same_recording(one: RecordedRun, other: RecordedRun) -> bool:
    columns = ["arrival_s", "latency_s", "service_s"]
    return one.frame[columns].equals(other.frame[columns])


def _services(run: RecordedRun) -> pd.DataFrame:
    """Return what each served request did.

    Returns
    -------
    pandas.DataFrame
        A row per served request: model, op, pp, service_s, gap_s (seconds from the end of the request before it on its
        devices, or from 0, to its start) and delay_s (seconds from when it could have started, by its arrival, its
        devices and the start of the request before it, to its start).
    """
    served = run.served.reset_index(drop=True)
    replicas = [run.replicas[client_id] for client_id in served["client_id"]]
    end = served["arrival_s"] + served["latency_s"]
    # recorded are the whole and the service alone
    start = end - served["service_s"]
    free = end.groupby([str(replica.devices) for replica in replicas]).shift(fill_value=0.0)
    ready = np.maximum(np.maximum(served["arrival_s"], free), start.shift(fill_value=0.0))
    return served.assign(
        op=[replica.config.op for replica in replicas],
        pp=[replica.config.pp for replica in replicas],
        gap_s=start - free,
        delay_s=start - ready,
    )


def _joined(services: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(services, ignore_index=True)


def mean_service(runs: Sequence[RecordedRun]) -> ServiceTable:
    """Return the mean service time, in seconds, of each model and config that the runs served.

    Over the requests that found their group busy (:data:`BUSY_WITHIN_S`), or over all if there are fewer than
    :data:`MIN_BUSY_REQUESTS` of them.
    """
    if not runs:
        return {}
    table: ServiceTable = {}
    for model, config, cell in _by_cell(_joined([_services(run) for run in runs])):
        busy = cell[cell["gap_s"] <= BUSY_WITHIN_S]
        counted = busy if len(busy) >= MIN_BUSY_REQUESTS else cell
        table[model, config] = float(counted["service_s"].mean())
    return table


def _by_cell(services: pd.DataFrame) -> Iterator[tuple[str, ParallelConfig, pd.DataFrame]]:
    """Yield the requests of each model and config."""
    for _, cell in services.groupby(["model", "op", "pp"]):
        model, op, pp = cell.iloc[0][["model", "op", "pp"]]
        yield str(model), ParallelConfig(1, int(op), int(pp)), cell


def estimate_rules(runs: Sequence[RecordedRun], base: ServingRules = MAVERIQ) -> ServingRules:
    """Return `base` with the constants that the runs show.

    Parameters
    ----------
    runs : sequence of RecordedRun
    base : ServingRules
        Gives all other rules, `idle_after_s`, and the constants that these runs do not show.

    Returns
    -------
    ServingRules
        `dispatch_interval_s`: the median of the start less the earliest possible start, mean over the runs, so that
        the run with the most requests does not decide alone. `request_overhead_s`: what a
        request takes beyond the profile's decode steps after the first token, mean over the requests of each model
        and config that came after a pause of at most `idle_after_s`, then over models and configs.
        `idle_penalty_s`: how much longer than that mean a request takes after a longer pause, per stage, mean over
        those requests.
    """
    each = [requests for requests in map(_services, runs) if len(requests)]
    if not each:
        return base
    delay_s = float(np.mean([requests["delay_s"].median() for requests in each]))
    overheads, penalties = [], []
    for model, config, cell in _by_cell(_joined(each)):
        decode_s = maveriq.load(model).prefill_decode(config).decode_s_per_token
        idle = cell["gap_s"] > base.idle_after_s
        if idle.all():
            continue
        mean = float(cell["service_s"][~idle].mean())
        overheads.append(mean - (OUTPUT_LENGTH - 1) * decode_s)
        penalties.extend(((cell["service_s"][idle] - mean) / config.pp).tolist())
    return replace(
        base,
        dispatch_interval_s=max(delay_s, 0.0),
        request_overhead_s=max(float(np.mean(overheads)), 0.0) if overheads else base.request_overhead_s,
        idle_penalty_s=max(float(np.mean(penalties)), 0.0) if penalties else base.idle_penalty_s,
    )
