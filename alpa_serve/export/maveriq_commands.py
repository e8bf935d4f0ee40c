"""A placement and a trace as the timed commands that MaverIQ's generator sends to its cluster.

The rules were read off MaverIQ's recorded runs, whose request times they give to the microsecond. They differ from
:class:`~alpa_serve.simulator.trace_workload.WorkloadFromTrace`: the trace is played once, each replica is a client of
its own that takes time to load, and requests for a model without a replica are sent all the same.
"""

from __future__ import annotations

import random as stdlib_random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError
from alpa_serve.simulator.trace_workload import LOAD_S, STEP_FILLED_S, STEP_S
from alpa_serve.simulator.util import legacy_random
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from alpa_serve.placement import ClusterEnv, ModelPlacement, ReplicaDeployment

SEED = 42
"""Seed of the recorded runs."""


@dataclass(frozen=True)
class Deploy:
    """Load a replica.

    Attributes
    ----------
    time_s : float
        Seconds from the start of the run.
    client_id : int
        The replica, from 1.
    model : str
    device_assigned : tuple of int
    tp_size, pp_size : int
        Tensor and pipeline parallel degree.
    batch_size : int
        Largest batch.
    """

    time_s: float
    client_id: int
    model: str
    device_assigned: tuple[int, ...]
    tp_size: int
    pp_size: int
    batch_size: int


@dataclass(frozen=True)
class Send:
    """Send a request.

    Attributes
    ----------
    time_s : float
        Seconds from the start of the run.
    client_id : int
        The replica that is to serve it; one that was never deployed if its model is not placed.
    model : str
    output_tokens : int
    slo_s : float
        Seconds from arrival to completion; a label by which attainment is judged afterwards.
    """

    time_s: float
    client_id: int
    model: str
    output_tokens: int
    slo_s: float


Command = Deploy | Send


def maveriq_commands(
    placement: ModelPlacement,
    models: Sequence[Mapping[str, Any]],
    cluster_env: ClusterEnv,
    step_counts: ArrayLike,
    slos_s: Sequence[float],
    *,
    batch_size: int = 1,
    seed: int = SEED,
) -> list[Command]:
    """Return the commands of a run, ascending in time.

    Parameters
    ----------
    placement : ModelPlacement
        Of `models`, by position.
    models : sequence of mappings
        Each with ``name``, ``load_time`` (a step) and ``output_length`` (tokens).
    cluster_env : ClusterEnv
        Where the groups get their devices.
    step_counts : array_like of int, shape (num_steps,)
        Requests of each step of 30 s.
    slos_s : sequence of float
        SLO of each model in seconds.
    batch_size : int
        Largest batch of each replica.
    seed : int
        Request times of equal seeds are equal, whatever the placement.

    Raises
    ------
    InvalidConfigError
        If a model loads after the last step, counts are not whole numbers >= 0, or a figure is out of range.
    InvalidPlacementError
        If the placement holds a model that is not there, one twice in a group, or does not fit the cluster.

    Notes
    -----
    A client is a replica; a model that is not placed is one client too. At step i, first every client of the models
    with load_time i is loaded, one after the other in the order of the clients: with n clients loaded before it, a
    client's deploy command is at 30 i + 90 n seconds, and 30 s later if i > 0. A client without a replica counts among
    the loaded ones but has no deploy command. Then the step's requests are drawn, uniformly over 29.9 s after
    30 i + 90 n seconds, n counting all clients loaded by then: at least 60 s after the last deploy command. They are
    drawn, and not sent, while no client is loaded. Each goes to a model drawn among those loaded, then to one of its
    clients, by a generator of its own.
    """
    check_int(batch_size, "batch_size", minimum=1)
    counts = _checked_counts(step_counts)
    _check_models(models, slos_s, len(counts))
    clients = _clients_of_models(placement, models, cluster_env)
    return list(_commands(clients, models, counts, slos_s, batch_size, seed))


def _commands(
    clients: Sequence[Sequence[ReplicaDeployment]],
    models: Sequence[Mapping[str, Any]],
    counts: NDArray[np.int64],
    slos_s: Sequence[float],
    batch_size: int,
    seed: int,
) -> Iterator[Command]:
    times = legacy_random(seed)
    choices = stdlib_random.Random(seed)
    loaded_models: list[int] = []
    num_loaded = 0
    for step, count in enumerate(counts.tolist()):
        for position, model in enumerate(models):
            if model["load_time"] != step:
                continue
            loaded_models.append(position)
            for client in clients[position]:
                if client.tp_size is not None and client.pp_size is not None:
                    yield Deploy(
                        (STEP_S if step else 0.0) + STEP_S * step + LOAD_S * num_loaded,
                        client.replica_id,
                        client.model,
                        client.device_assigned,
                        client.tp_size,
                        client.pp_size,
                        batch_size,
                    )
                num_loaded += 1
        # drawn even when nothing is loaded: later draws must not depend on it
        offsets = np.sort(times.uniform(0, STEP_FILLED_S, size=count)).tolist()
        if not loaded_models:
            continue
        for offset in offsets:
            position = choices.choice(loaded_models)
            client = choices.choice(clients[position])
            yield Send(
                STEP_S * step + LOAD_S * num_loaded + offset,
                client.replica_id,
                client.model,
                models[position]["output_length"],
                float(slos_s[position]),
            )


def _clients_of_models(
    placement: ModelPlacement, models: Sequence[Mapping[str, Any]], cluster_env: ClusterEnv
) -> list[list[ReplicaDeployment]]:
    """Return the clients of each model; one without devices if it is not placed."""
    for group_id, members in enumerate(placement.group_models):
        if len(set(members)) != len(members):
            raise InvalidPlacementError(f"group {group_id} holds a model twice: {members}")
        unknown = [model_id for model_id in members if model_id >= len(models)]
        if unknown:
            raise InvalidPlacementError(f"group {group_id}: no model {unknown[0]}; models are 0 to {len(models) - 1}")
    deployment = iter(placement.deployment([model["name"] for model in models], cluster_env))
    num_replicas = [sum(position in members for members in placement.group_models) for position in range(len(models))]
    return [[next(deployment) for _ in range(max(number, 1))] for number in num_replicas]


def _checked_counts(step_counts: ArrayLike) -> NDArray[np.int64]:
    counts = np.asarray(step_counts)
    if counts.ndim != 1 or not len(counts) or not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
        raise InvalidConfigError(f"step_counts must be whole numbers >= 0, one per step, got {step_counts!r}")
    return counts.astype(np.int64)


def _check_models(models: Sequence[Mapping[str, Any]], slos_s: Sequence[float], num_steps: int) -> None:
    if len(slos_s) != len(models):
        raise InvalidConfigError(f"need an SLO per model, got {len(slos_s)} for {len(models)} models")
    for position, (model, slo_s) in enumerate(zip(models, slos_s, strict=True)):
        where = f"model {position}"
        missing = [key for key in ("name", "load_time", "output_length") if key not in model]
        if missing:
            raise InvalidConfigError(f"{where} lacks {', '.join(missing)}: {dict(model)}")
        check_int(model["output_length"], f"output_length (tokens) of {where}", minimum=1)
        check_real(slo_s, f"slo (s) of {where}", minimum=0.0, exclusive=True, finite=False)
        if check_int(model["load_time"], f"load_time (step) of {where}", minimum=0) >= num_steps:
            raise InvalidConfigError(
                f"{where}, {model['name']}, loads at step {model['load_time']}, but the trace has only steps 0 to "
                f"{num_steps - 1}: take a longer trace or an earlier load_time"
            )
