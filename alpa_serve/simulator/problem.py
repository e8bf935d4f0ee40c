"""Models, requests and placements as arrays, the form in which the compiled simulator takes them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidPlacementError, InvalidProfileError, InvalidWorkloadError
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.scheduling import ALPASERVE, check_rules, replica_timing
from alpa_serve.simulator.columns import check_columns, column, token_column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from alpa_serve.placement import ModelPlacement
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

logger = logging.getLogger(__name__)


class ModelTable:
    """The profiles of some models as arrays.

    Parameters
    ----------
    names : sequence of str
    profiles : sequence of ProfilingResult
    batch_sizes : sequence of int
        The batch sizes that will be simulated.
    rules : ServingRules

    Attributes
    ----------
    config_ids : dict of ParallelConfig to int
        Every config that some profile has.
    num_stages : ndarray of int64, shape (num_configs,)
    stage_latency : ndarray of float64, shape (num_models, num_configs, num_batch_sizes, max_stages)
        Seconds, by the rules; NaN where not profiled.
    token_rates : ndarray of float64, shape (num_models, num_configs, 2)
        Seconds per stage for each input token and for each output token after the first; 0 unless service is by tokens.

    Raises
    ------
    InvalidProfileError
        If a figure is malformed.
    """

    def __init__(
        self,
        names: Sequence[str],
        profiles: Sequence[ProfilingResult],
        batch_sizes: Sequence[int] = (1,),
        rules: ServingRules = ALPASERVE,
    ) -> None:
        if len(names) != len(profiles):
            raise InvalidProfileError(f"{len(names)} model names but {len(profiles)} profiles")
        for name, profile in zip(names, profiles, strict=True):
            if not isinstance(profile, ProfilingResult):
                raise InvalidProfileError(f"the profile of model {name!r} must be a ProfilingResult, got {profile!r}")
        self.names = tuple(names)
        self.profiles = tuple(profiles)
        self.batch_sizes = tuple(batch_sizes)
        self.rules = check_rules(rules)
        distinct = {id(profile): profile for profile in profiles}.values()
        configs = sorted({ParallelConfig(*config) for profile in distinct for config in profile.para_dict})
        self.config_ids = {config: config_id for config_id, config in enumerate(configs)}
        self.num_stages = np.array([config.pp for config in configs], dtype=np.int64)
        max_stages = int(self.num_stages.max(initial=1))
        self.stage_latency: NDArray[np.float64] = np.full(
            (len(profiles), len(configs), len(self.batch_sizes), max_stages), np.nan
        )
        self.token_rates: NDArray[np.float64] = np.zeros((len(profiles), len(configs), 2))
        # many models may share a profile, and checking one takes time
        first_with: dict[int, int] = {}
        for model_id, profile in enumerate(profiles):
            first = first_with.setdefault(id(profile), model_id)
            if first < model_id:
                self.stage_latency[model_id] = self.stage_latency[first]
                self.token_rates[model_id] = self.token_rates[first]
                continue
            for key, data in profile.para_dict.items():
                config = ParallelConfig(*key)
                known = data.latency if rules.service == "profile" else data.prefill_decode
                for batch_id, batch_size in enumerate(self.batch_sizes):
                    # a batch size that is missing is reported when the config is used
                    if batch_size in known:
                        timing = replica_timing(profile, config, rules, batch_size)
                        config_id = self.config_ids[config]
                        self.stage_latency[model_id, config_id, batch_id, : config.pp] = timing.latency
                        self.token_rates[model_id, config_id] = timing.input_rate, timing.further_rate

    def __len__(self) -> int:
        return len(self.names)

    def has(self, model_id: int, config: ParallelConfig) -> bool:
        """Tell whether the model is profiled on `config`."""
        return config in self.profiles[model_id].para_dict


@dataclass(frozen=True)
class RequestTable:
    """Requests as arrays of shape (n,), in the order of their arrivals.

    Attributes
    ----------
    arrivals : ndarray of float64
        Seconds.
    model_ids : ndarray of int32
        Row in the model table; -1 for a model that is not registered.
    slos : ndarray of float64
        Seconds; infinity for none.
    model_num_requests : ndarray of int64, shape (num_models,)
    input_tokens, output_tokens : ndarray of int64
        -1 where it is not known; of length 0 if no request has any.
    """

    arrivals: NDArray[np.float64]
    model_ids: NDArray[np.int32]
    slos: NDArray[np.float64]
    model_num_requests: NDArray[np.int64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrivals)

    @classmethod
    def of_workload(cls, workload: Workload, model_names: Sequence[str]) -> RequestTable:
        """Return the requests of `workload`; its models are found by name.

        Requests for names that are not among `model_names` are kept, unregistered; one warning counts them, once for
        a workload and its parts.
        """
        names = tuple(model_names)
        cached = workload.cached_data if workload.enable_simulator_cache else None
        if cached is not None and cached[0] == names:
            table: RequestTable = cached[1]
            return table
        position = {name: model_id for model_id, name in enumerate(names)}
        translation = np.array([position.get(name, -1) for name in workload.model_names] or [-1], dtype=np.int32)
        table = cls.of_arrays(
            workload.arrivals,
            translation[workload.model_ids],
            workload.slos,
            len(names),
            input_tokens=workload.input_tokens,
            output_tokens=workload.output_tokens,
        )
        if table.model_num_requests.sum() < len(table):
            report_unregistered(workload, names)
        if workload.enable_simulator_cache:
            workload.cached_data = (names, table)
        return table

    @classmethod
    def of_arrays(
        cls,
        arrivals: NDArray[np.float64],
        model_ids: NDArray[np.int32],
        slos: NDArray[np.float64],
        num_models: int,
        *,
        input_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
    ) -> RequestTable:
        """Return a copy of the requests given as arrays of equal length.

        Raises
        ------
        InvalidWorkloadError
            If the lengths differ, a value is not a number or out of range, arrivals descend or a model id is too large.
        """
        arrivals = column(arrivals, np.float64, "arrivals")
        model_ids = column(model_ids, np.int32, "model ids")
        slos = column(slos, np.float64, "SLOs")
        check_columns(arrivals, model_ids, slos)
        if len(arrivals) and model_ids.max() >= num_models:
            raise InvalidWorkloadError(f"model id {model_ids.max()}: there are {num_models} models")
        # bin 0 counts the unregistered
        counts = np.bincount(np.maximum(model_ids, -1) + 1, minlength=num_models + 1)[1:]
        tokens = [
            token_column(given, len(arrivals), what)
            for given, what in ((input_tokens, "input_tokens"), (output_tokens, "output_tokens"))
        ]
        filled = [np.empty(0, dtype=np.int64) if known is None else known for known in tokens]
        return cls(arrivals, model_ids, slos, counts.astype(np.int64), *filled)

    def check_for(self, rules: ServingRules) -> None:
        """Check that the requests have what `rules` need.

        Raises
        ------
        InvalidWorkloadError
            If service is by tokens and a request has no token counts.
        """
        if rules.service != "tokens":
            return
        for what, tokens in (("input_tokens", self.input_tokens), ("output_tokens", self.output_tokens)):
            missing = np.flatnonzero(tokens < 0)
            if len(tokens) != len(self) or len(missing):
                first = missing[0] if len(missing) else 0
                raise InvalidWorkloadError(
                    f"service='tokens' needs the token counts of every request; request {first} has no {what}"
                )

    @cached_property
    def _by_model(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The positions of the requests model by model, and the first of each model and the end of the last."""
        order = np.argsort(self.model_ids, kind="stable")
        return order, np.searchsorted(self.model_ids[order], np.arange(len(self.model_num_requests) + 1))

    def positions_of(self, model_ids: Sequence[int]) -> NDArray[np.int64]:
        """Return the positions of the requests for some models, ascending; it takes no longer than they are many."""
        order, starts = self._by_model
        runs = [order[starts[m] : starts[m + 1]] for m in model_ids]
        # a stable sort merges what ascends already
        return np.sort(np.concatenate(runs), kind="stable") if runs else order[:0]

    def at(self, positions: NDArray[np.int64]) -> RequestTable:
        """Return the requests at these positions, which ascend."""
        model_ids = self.model_ids[positions]
        return RequestTable(
            self.arrivals[positions],
            model_ids,
            self.slos[positions],
            np.bincount(model_ids[model_ids >= 0], minlength=len(self.model_num_requests)),
            self.input_tokens[positions] if len(self.input_tokens) else self.input_tokens,
            self.output_tokens[positions] if len(self.output_tokens) else self.output_tokens,
        )

    def part(self, first: int, past: int) -> RequestTable:
        """Return requests `first` to `past` - 1."""
        if (first, past) == (0, len(self)):
            return self
        model_ids = self.model_ids[first:past]
        return RequestTable(
            self.arrivals[first:past],
            model_ids,
            self.slos[first:past],
            np.bincount(model_ids[model_ids >= 0], minlength=len(self.model_num_requests)),
            self.input_tokens[first:past],
            self.output_tokens[first:past],
        )


def report_unregistered(workload: Workload, model_names: Iterable[str]) -> None:
    """Warn of requests for models that are not among `model_names`, once for a workload and its parts."""
    names = tuple(model_names)
    if names in workload.reported_unregistered:
        return
    known = set(names)
    unknown = {name: workload.num_model_requests(name) for name in workload.model_names if name not in known}
    if any(unknown.values()):
        workload.reported_unregistered.add(names)
        logger.warning(
            "%d of %d requests name a model that is not registered and will not be served (%s)",
            sum(unknown.values()),
            len(workload),
            ", ".join(f"{name!r}: {count}" for name, count in unknown.items() if count),
        )


@dataclass(frozen=True)
class ReplicaTable:
    """The replicas of a placement as arrays, ordered by model, then by group.

    Attributes
    ----------
    rules : ServingRules
        By which the latencies were made.
    num_groups : int
    model_start : ndarray of int64, shape (num_models + 1,)
        Replicas model_start[m] to model_start[m + 1] - 1 are those of model m.
    group : ndarray of int64, shape (num_replicas,)
    num_stages : ndarray of int64, shape (num_replicas,)
    latency : ndarray of float64, shape (num_replicas, num_batch_sizes, max_stages)
        Seconds per stage.
    token_rates : ndarray of float64, shape (num_replicas, 2)
        Seconds per stage for each input token and for each output token after the first.
    """

    rules: ServingRules
    num_groups: int
    model_start: NDArray[np.int64]
    group: NDArray[np.int64]
    num_stages: NDArray[np.int64]
    latency: NDArray[np.float64]
    token_rates: NDArray[np.float64]

    @classmethod
    def of_groups(
        cls, models: ModelTable, group_configs: Sequence[ParallelConfig], group_models: Sequence[Sequence[int]]
    ) -> ReplicaTable:
        """Return the replicas of the given groups.

        A model on a config that its profile lacks is left out: that group cannot serve it.

        Raises
        ------
        InvalidPlacementError
            If a model id is out of range.
        InvalidProfileError
            If a profile lacks one of the batch sizes on a config that it has, or figures for the rules' service.
        """
        pairs = sorted(
            (model_id, group_id)
            for group_id, (config, members) in enumerate(zip(group_configs, group_models, strict=True))
            for model_id in members
            if _is_profiled(models, model_id, config, group_id)
        )
        model_ids = np.array([model_id for model_id, _ in pairs], dtype=np.int64)
        groups = np.array([group_id for _, group_id in pairs], dtype=np.int64)
        config_of_group = np.array([models.config_ids.get(config, -1) for config in group_configs], dtype=np.int64)
        config_ids = config_of_group[groups] if len(pairs) else groups
        latency = models.stage_latency[model_ids, config_ids]
        num_stages = models.num_stages[config_ids]
        missing = np.flatnonzero(np.isnan(latency[:, :, 0]).any(axis=1))
        if len(missing):
            model_id, group_id = pairs[missing[0]]
            for batch_size in models.batch_sizes:
                replica_timing(models.profiles[model_id], group_configs[group_id], models.rules, batch_size)
        starts = np.searchsorted(model_ids, np.arange(len(models) + 1))
        return cls(
            models.rules,
            len(group_configs),
            starts.astype(np.int64),
            groups,
            num_stages,
            np.ascontiguousarray(latency),
            models.token_rates[model_ids, config_ids],
        )

    @classmethod
    def of_placement(cls, models: ModelTable, placement: ModelPlacement) -> ReplicaTable:
        """Return the replicas of `placement` (:meth:`of_groups`), warning of those that a profile rules out."""
        table = cls.of_groups(models, placement.group_configs, placement.group_models)
        left_out = placement.num_replicas - len(table.group)
        if left_out:
            logger.warning("%d replicas are on a config that their model's profile lacks; they serve nothing", left_out)
        return table


def _is_profiled(models: ModelTable, model_id: int, config: ParallelConfig, group_id: int) -> bool:
    if not 0 <= model_id < len(models):
        raise InvalidPlacementError(f"group {group_id}: no model {model_id}; models are 0 to {len(models) - 1}")
    return models.has(model_id, config)
