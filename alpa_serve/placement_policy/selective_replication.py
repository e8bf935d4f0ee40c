"""Policies that only replicate: every device is a group of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InfeasiblePlacementError
from alpa_serve.placement import ModelPlacement, ModelPlacementWithReplacement
from alpa_serve.placement_policy.base_policy import BasePlacementPolicy
from alpa_serve.placement_policy.beam import DEFAULT_BEAM_SIZE, replica_placement_beam_search
from alpa_serve.placement_policy.evaluator import PlacementEvaluator, model_weights
from alpa_serve.placement_policy.feasibility import check_something_fits
from alpa_serve.placement_policy.fixed_groups import FixedGroupsGreedy
from alpa_serve.placement_policy.ilp import DEFAULT_TIME_LIMIT_S, solve_replication
from alpa_serve.placement_policy.progress import SearchProgress, reporter
from alpa_serve.placement_policy.training import workload_or_training
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.util import GB
from alpa_serve.validation import check_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

SINGLE_DEVICE = ParallelConfig(1, 1, 1)


class SelectiveReplicationILP(BasePlacementPolicy):
    """Replicas chosen by an integer program on expected rates (:func:`~.ilp.solve_replication`).

    Parameters
    ----------
    verbose : int
    time_limit : float
        Seconds for the solver; the best placement found by then is taken.
    rules : ServingRules
        Without effect: nothing is simulated.
    """

    def __init__(
        self, verbose: int = 0, *, time_limit: float = DEFAULT_TIME_LIMIT_S, rules: ServingRules = ALPASERVE
    ) -> None:
        super().__init__(verbose, rules=rules)
        self.time_limit = check_real(time_limit, "time_limit (s)", minimum=0.0, exclusive=True)

    def solve_placement(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, train_workload: Workload | None = None
    ) -> tuple[ModelPlacement, dict[str, Any]]:
        """Find a placement; `train_workload` has no effect."""
        check_something_fits(model_datas, cluster_env, [SINGLE_DEVICE])
        return solve_replication(model_datas, cluster_env, self.time_limit), {}


class SelectiveReplicationGreedy(FixedGroupsGreedy):
    """Replicas added one by one where most requests are unserved (:func:`~.greedy.replica_placement_fast_greedy`).

    Parameters
    ----------
    use_evo_search : bool
        Improve the result by evolutionary search.
    verbose : int
    callback : callable, optional
        Called with a SearchProgress after every step.
    rules : ServingRules
        How the cluster serves, for the simulations of the search.
    """

    def group_configs(self, cluster_env: ClusterEnv) -> list[ParallelConfig]:
        """Return one group per device."""
        return [SINGLE_DEVICE] * cluster_env.num_devices


class SelectiveReplicationUniform(BasePlacementPolicy):
    """The same number of models on every device, in turn: device i holds models i, i + 1, ... modulo their number.

    How many is what fits of model 0. Models that differ from it may not fit: :meth:`ModelPlacement.verify` tells.
    """

    def solve_placement(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, train_workload: Workload | None = None
    ) -> tuple[ModelPlacement, dict[str, Any]]:
        """Find a placement; `train_workload` has no effect.

        Raises
        ------
        InfeasiblePlacementError
            If model 0 does not fit on a device.
        """
        check_something_fits(model_datas, cluster_env, [SINGLE_DEVICE])
        weight = model_weights(model_datas[:1], SINGLE_DEVICE)[0]
        num_models = len(model_datas)
        per_device = int(min(cluster_env.mem_budget / weight, num_models)) if weight > 0 else num_models
        if not per_device:
            needs = "is not profiled on one device" if np.isinf(weight) else f"needs {weight / GB:.3f} GiB"
            raise InfeasiblePlacementError(
                f"model {model_datas[0].name!r}, which sets how many models a device holds, {needs}; "
                f"mem_budget is {cluster_env.mem_budget / GB:.3f} GiB"
            )
        group_models = [
            [(device + k) % num_models for k in range(per_device)] for device in range(cluster_env.num_devices)
        ]
        return ModelPlacement([SINGLE_DEVICE] * cluster_env.num_devices, group_models), {}


class SelectiveReplicationSearch(BasePlacementPolicy):
    """Replicas chosen by beam search of size 3 (:func:`~.beam.replica_placement_beam_search`).

    Parameters
    ----------
    verbose : int
    callback : callable, optional
        Called with a SearchProgress after every level.
    rules : ServingRules
        How the cluster serves, for the simulations of the search.
    """

    def __init__(
        self,
        verbose: int = 0,
        *,
        callback: ProgressCallback | None = None,
        rules: ServingRules = ALPASERVE,
    ) -> None:
        super().__init__(verbose, rules=rules)
        self.callback = callback

    def solve_placement(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, train_workload: Workload | None = None
    ) -> tuple[ModelPlacement, dict[str, Any]]:
        """Find a placement (see :class:`~.base_policy.BasePlacementPolicy`)."""
        check_something_fits(model_datas, cluster_env, [SINGLE_DEVICE], strictly=True)
        train_workload = workload_or_training(train_workload, model_datas)
        placement = replica_placement_beam_search(
            ModelPlacement.empty_groups([SINGLE_DEVICE] * cluster_env.num_devices),
            model_datas,
            cluster_env,
            train_workload,
            PlacementEvaluator(model_datas, cluster_env, train_workload, rules=self.rules),
            DEFAULT_BEAM_SIZE,
            self.verbose,
            callback=self.callback,
        )
        return placement, {}


class SelectiveReplicationReplacement(BasePlacementPolicy):
    """A new placement for every interval of the workload, each by fast greedy on that interval alone.

    As in Clockwork++ of the AlpaServe paper, moving models is taken to cost nothing.

    Parameters
    ----------
    replacement_interval : float
        Seconds.
    use_evo_search : bool
        Improve each placement by evolutionary search.
    verbose : int
    callback : callable, optional
        Called with a SearchProgress after every interval.
    rules : ServingRules
        How the cluster serves, for the simulations of the search.
    """

    def __init__(
        self,
        replacement_interval: float,
        use_evo_search: bool = False,
        verbose: int = 0,
        *,
        callback: ProgressCallback | None = None,
        rules: ServingRules = ALPASERVE,
    ) -> None:
        super().__init__(verbose, rules=rules)
        self.replacement_interval = check_real(
            replacement_interval, "replacement_interval (s)", minimum=0.0, exclusive=True
        )
        self.use_evo_search = use_evo_search
        self.callback = callback

    def solve_placement(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, train_workload: Workload | None = None
    ) -> tuple[ModelPlacementWithReplacement, dict[str, Any]]:
        """Find a placement for every interval; `start_times` are the first arrivals of the intervals.

        Raises
        ------
        InfeasiblePlacementError
            If nothing fits on a device, or there is no request.
        """
        check_something_fits(model_datas, cluster_env, [SINGLE_DEVICE])
        train_workload = workload_or_training(train_workload, model_datas)
        segments = train_workload.split_time_interval(self.replacement_interval)
        if not segments:
            raise InfeasiblePlacementError("the workload has no request: there is no interval to place models for")
        report = reporter(self.verbose, self.callback)
        policy = SelectiveReplicationGreedy(self.use_evo_search, rules=self.rules)
        placements = []
        for number, segment in enumerate(segments, start=1):
            placements.append(policy.solve_placement(model_datas, cluster_env, segment)[0])
            report(SearchProgress("replacement intervals", number, len(segments), None, placements[-1]))
        start_times = [float(segment.arrivals[0]) for segment in segments]
        return ModelPlacementWithReplacement(start_times, placements), {}
