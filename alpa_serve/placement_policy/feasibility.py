"""Whether anything can be placed at all, and what would have to change if not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError
from alpa_serve.placement_policy.evaluator import model_weights
from alpa_serve.util import GB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.profiling import ParallelConfig


def smallest_budget(model_datas: Sequence[ModelData], configs: Iterable[ParallelConfig]) -> float:
    """Return the smallest mem_budget (bytes) in which some model fits on some of `configs`; infinite if none does."""
    return min(
        (float(model_weights(model_datas, config).min(initial=np.inf)) for config in set(configs)), default=np.inf
    )


def check_something_fits(
    model_datas: Sequence[ModelData], cluster_env: ClusterEnv, configs: Iterable[ParallelConfig]
) -> None:
    """Check that at least one model fits on one of the group `configs` that a search may use.

    Raises
    ------
    InvalidConfigError
        If there is no model.
    InfeasiblePlacementError
        Naming the smallest mem_budget that would do, or the configs if no model is profiled on any.
    """
    if not model_datas:
        raise InvalidConfigError("there is no model to place")
    allowed = sorted(set(configs))
    budget = smallest_budget(model_datas, allowed)
    if budget == np.inf:
        raise InfeasiblePlacementError(
            f"no model is profiled on any group config that this policy may use on {cluster_env.num_devices} devices: "
            f"{', '.join(str(tuple(config)) for config in allowed) or 'none'}"
        )
    if budget > cluster_env.mem_budget:
        raise InfeasiblePlacementError(
            f"no model fits in a mem_budget of {cluster_env.mem_budget / GB:.3f} GiB a device; "
            f"the smallest that would do is {budget / GB:.3f} GiB ({budget:.0f} bytes)"
        )
