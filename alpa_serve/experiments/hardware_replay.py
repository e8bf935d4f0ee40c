"""Replaying a recorded run, its arrivals on its placement, by serving rules and a profile; and what was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.experiments.maveriq import MODEL_SETS, OUTPUT_LENGTH, model_list
from alpa_serve.placement import ModelData, ModelPlacement
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.scheduling import MAVERIQ
from alpa_serve.scheduling.timing import replica_timing
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.simulator.simulation import simulate
from alpa_serve.simulator.trace_workload import LOAD_S, STEP_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    from alpa_serve.experiments.hardware_runs import RecordedRun
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.simulation import SimulationResult

INPUT_TOKENS = 0
"""Prompt tokens of a replayed request: at most 512 characters and not recorded.

What such prompts cost is part of the rules' `request_overhead_s`.
"""

CROWDING_S = 0.025
"""Seconds by which service was seen to grow per resident model in runs with 21 models; cause unknown.

The middle of 0.02 to 0.03 s (MaverIQ's evaluation). None of the runs that the rules were read off shows it.
"""

STALL_AFTER_DEPLOY_S, STALL_S = 30.0, 10.0
"""Seconds between the deployment of a model and the stall that loading it causes, and how long nothing begins then.

That loading stops the cluster for about 10 s is from MaverIQ's evaluation. When it does is from "large, conversation,
0.2", the only recorded run with a queue during loading: nothing began from 304.6 to 314.3, 535.2 to 545.1 and 781.0 to
791.0 s, with models deployed at 270, 510 and 750 s. Any start from 0 to 50 s after the deployment predicts
the same mean latencies to 0.3 %.
"""

ServiceTable = dict[tuple[str, ParallelConfig], float]
"""Seconds of service by model and config."""


@dataclass(frozen=True)
class Figures:
    """What is compared, of the requests that were done when the recording ended.

    Attributes
    ----------
    num_served : int
    mean_latency_s, p90_latency_s, p99_latency_s : float
        Seconds from arrival to completion; NaN if no request was served.
    attainment : float
        Share of requests that met their SLO, of those served, and dropped where the rules drop requests; NaN without.
    """

    num_served: int
    mean_latency_s: float
    p90_latency_s: float
    p99_latency_s: float
    attainment: float

    @classmethod
    def of_requests(cls, latency: NDArray[np.float64], num_good: int, num_dropped: int = 0) -> Figures:
        """Return the figures of served requests, given their latencies in seconds."""
        num_served = len(latency)
        if not num_served:
            return cls(0, np.nan, np.nan, np.nan, 0.0 if num_dropped else np.nan)
        p90, p99 = np.quantile(latency, (0.9, 0.99))
        mean, attainment = float(latency.mean()), num_good / (num_served + num_dropped)
        return cls(num_served, mean, float(p90), float(p99), attainment)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A replayed run.

    Attributes
    ----------
    figures : Figures
        Of the requests predicted to be done by the end of the recording.
    simulation : SimulationResult
        Of all requests in ``run.load``, in the same order.
    calibrated : dict of (str, ParallelConfig) to bool
        For each model and config in the run, whether its service time was given.
    """

    figures: Figures
    simulation: SimulationResult
    calibrated: dict[tuple[str, ParallelConfig], bool]


def labelled_slo_s(slo_factor: float, model: str) -> float:
    """Return the SLO that MaverIQ labels a model's requests with: seconds from arrival to completion.

    It is the factor times the measured latency of a single request of 20 tokens at op 1 and the model's smallest pp.
    """
    profile = _measured_profile(model)
    config = min(config for config in profile.para_dict if config.op == 1)
    return slo_factor * sum(profile.stage_latency(config))


def slo_s(run: RecordedRun, model: str) -> float:
    """Return the SLO of a model in a run (:func:`labelled_slo_s`)."""
    return labelled_slo_s(run.slo_factor, model)


def measured(run: RecordedRun) -> Figures:
    """Return the figures of the requests that were served."""
    served = run.served
    latency = served["latency_s"].to_numpy(dtype=np.float64)
    return Figures.of_requests(latency, int(np.count_nonzero(latency <= _slos(run, served["model"].tolist()))))


def replay(
    run: RecordedRun,
    rules: ServingRules = MAVERIQ,
    service: Mapping[tuple[str, ParallelConfig], float] | None = None,
    *,
    stalls: ArrayLike | None = None,
    crowding_s: float = 0.0,
    load_profile: Callable[[str], ProfilingResult] = maveriq.load,
) -> Prediction:
    """Simulate the recorded arrivals on the recorded placement.

    Each client is a model of its own on the group where it was loaded, so that a request goes to the replica that it
    went to. Requests rejected for want of a loaded model are left out.

    Parameters
    ----------
    run : RecordedRun
    rules : ServingRules
    service : mapping of (str, ParallelConfig) to float, optional
        Seconds of service by model and config, all overheads but idle_penalty_s included. The profile and the rules'
        overhead for those that it lacks.
    stalls : array_like of float, shape (num_stalls, 2), optional
        As :func:`~alpa_serve.simulator.simulation.simulate` takes them; :func:`load_stalls` if left out.
    crowding_s : float
        Seconds of service to add per model that is resident in the cluster when a request arrives.
    load_profile : callable
        Gives the profile of a model by its name.

    Returns
    -------
    Prediction

    Raises
    ------
    InvalidTraceError
        If the cluster had no request to serve.
    """
    load = run.load
    if not len(load):
        raise InvalidTraceError(f"run {run.experiment}: every request was rejected; there is nothing to replay")
    arrivals = load["arrival_s"].to_numpy(dtype=np.float64)
    resident = resident_models(run, arrivals) if crowding_s > 0 else np.zeros(len(load), dtype=np.int64)
    # a model per client and number of resident models: what a request costs is the same for all requests of a model
    keys = list(zip(load["client_id"].tolist(), resident.tolist(), strict=True))
    positions = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    profiles: dict[str, ProfilingResult] = {}
    given = {} if service is None else service
    by_table = service is not None or crowding_s > 0
    calibrated = {
        (replica.model, replica.config): (replica.model, replica.config) in given for replica in run.replicas.values()
    }
    datas = []
    for client_id, num_resident in positions:
        _, model, _, config = run.replicas[client_id]
        if model not in profiles:
            profiles[model] = load_profile(model)
        profile = profiles[model]
        if by_table:
            seconds = given[model, config] if calibrated[model, config] else service_s(profile, config, rules)
            profile = _profile_of(model, config, seconds + crowding_s * num_resident)
        datas.append(ModelData(f"client {client_id}, {num_resident}", slo_s(run, model), 0.0, 0.0, profile))
    groups = list(run.groups)
    members: list[list[int]] = [[] for _ in groups]
    for (client_id, _), position in positions.items():
        members[groups.index(run.replicas[client_id].devices)].append(position)
    simulation = simulate(
        ModelPlacement(list(run.groups.values()), members),
        datas,
        Workload.from_columns(
            arrivals,
            [positions[key] for key in keys],
            [data.name for data in datas],
            _slos(run, load["model"].tolist()),
            input_tokens=INPUT_TOKENS,
            output_tokens=OUTPUT_LENGTH,
        ),
        # the table's seconds have the overheads in them
        replace(rules, service="profile", stage_penalty=0.0, request_overhead_s=0.0) if by_table else rules,
        stalls=load_stalls(run) if stalls is None else stalls,
    )
    done = simulation.served & (simulation.finish <= run.last_finish_s)
    figures = Figures.of_requests(
        simulation.latency[done],
        int(np.count_nonzero(simulation.good & done)),
        int(np.count_nonzero(~simulation.served)),
    )
    return Prediction(figures, simulation, calibrated)


def service_s(profile: ProfilingResult, config: ParallelConfig, rules: ServingRules) -> float:
    """Return the seconds that a request holds its group under the rules, without idle_penalty_s."""
    timing = replica_timing(profile, config, rules)
    tokens = timing.input_rate * INPUT_TOKENS + timing.further_rate * (OUTPUT_LENGTH - 1)
    return sum(timing.latency) + config.pp * tokens


def deploy_times(run: RecordedRun) -> dict[int, float] | None:
    """Return when the generator had each client's model loaded, or None if the run does not fit its model set.

    Returns
    -------
    dict of int to float, or None
        Seconds by client id, for clients that were never placed too.

    Notes
    -----
    The generator numbers its clients from 1 in the order of the model set; an item of the set is one client if it was
    not placed, else one per replica. A client's model is loaded at its item's step of the trace, 30 s each (none of
    which pass before the first item's), and each client before it delays it by 90 s.
    """
    clients = run.clients
    if run.model_set not in MODEL_SETS or list(clients) != list(range(1, len(clients) + 1)):
        return None
    times: dict[int, float] = {}
    remaining = list(clients)
    for name, same in groupby(model_list(run.model_set), key=lambda item: item["name"]):
        items = [float(item["load_time"]) for item in same]
        num_clients = next((k for k, client_id in enumerate(remaining) if clients[client_id] != name), len(remaining))
        ids, remaining = remaining[:num_clients], remaining[num_clients:]
        # a recording may end before the last items are loaded, but none is passed over
        if remaining and len(ids) < len(items):
            return None
        item = 0
        for place, client_id in enumerate(ids):
            if place and (not _is_next_replica(run, ids[place - 1], client_id) or len(ids) - place < len(items) - item):
                item += 1
            if item == len(items):
                return None
            step = items[item]
            first = STEP_S if step else 0.0
            times[client_id] = first + STEP_S * step + LOAD_S * len(times)
    return None if remaining else times


def load_stalls(run: RecordedRun) -> NDArray[np.float64]:
    """Return when nothing could begin because a model was being loaded, shape (num_stalls, 2), in seconds.

    Empty if the times of loading are not known (:func:`deploy_times`).
    """
    times = deploy_times(run) or {}
    starts = np.array(sorted(times[client] for client in times if client in run.replicas)) + STALL_AFTER_DEPLOY_S
    return np.column_stack([starts, starts + STALL_S])


def resident_models(run: RecordedRun, at_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many models were loaded at each of the times `at_s` (seconds), same shape.

    By the times of loading, or, if they are not known, from each client's first request on.
    """
    times = deploy_times(run)
    if times is None:
        since = run.load.groupby("client_id")["arrival_s"].min().to_numpy(dtype=np.float64)
    else:
        since = np.array([times[client] + STALL_AFTER_DEPLOY_S + STALL_S for client in run.replicas])
    return np.searchsorted(np.sort(since), at_s, side="right").astype(np.int64)


def _is_next_replica(run: RecordedRun, client_id: int, following: int) -> bool:
    """Whether a client can be a further replica of the item of the client before it: replicas ascend in devices."""
    one, other = run.replicas.get(client_id), run.replicas.get(following)
    return one is not None and other is not None and one.devices < other.devices


@cache
def _measured_profile(model: str) -> ProfilingResult:
    return maveriq.load(model)


def _slos(run: RecordedRun, models: list[str]) -> NDArray[np.float64]:
    slos = {model: slo_s(run, model) for model in dict.fromkeys(models)}
    return np.array([slos[model] for model in models], dtype=np.float64)


def _profile_of(model: str, config: ParallelConfig, seconds: float) -> ProfilingResult:
    """Return a profile of one config by which a request holds its group for `seconds`."""
    profile = ProfilingResult(model)
    nothing = [0.0] * config.pp
    profile.add_result(config, 1, [seconds / config.pp] * config.pp, nothing, nothing)
    return profile
