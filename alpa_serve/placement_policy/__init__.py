"""Placement policies: which groups there are, how they split their models, and which models each holds."""

from alpa_serve.placement_policy.base_policy import (
    BasePlacementPolicy,
    ClusterEnv,
    ModelData,
    ModelPlacement,
    ModelPlacementWithReplacement,
    PlacementEvaluator,
)
from alpa_serve.placement_policy.capacity import plan_capacity
from alpa_serve.placement_policy.mixed_parallelism_search import MixedParallelismSearch
from alpa_serve.placement_policy.model_parallelism import (
    ModelParallelismEqual,
    ModelParallelismGreedy,
    ModelParallelismILP,
    ModelParallelismRR,
    ModelParallelismSearch,
)
from alpa_serve.placement_policy.plans import CapacityPlan, ScalePlan
from alpa_serve.placement_policy.progress import SearchProgress
from alpa_serve.placement_policy.scaling import highest_rate_scale, tightest_slo_scale
from alpa_serve.placement_policy.selective_replication import (
    SelectiveReplicationGreedy,
    SelectiveReplicationILP,
    SelectiveReplicationReplacement,
    SelectiveReplicationSearch,
    SelectiveReplicationUniform,
)
from alpa_serve.placement_policy.upper_bound import placement_upper_bound

__all__ = [
    "BasePlacementPolicy",
    "CapacityPlan",
    "ClusterEnv",
    "MixedParallelismSearch",
    "ModelData",
    "ModelParallelismEqual",
    "ModelParallelismGreedy",
    "ModelParallelismILP",
    "ModelParallelismRR",
    "ModelParallelismSearch",
    "ModelPlacement",
    "ModelPlacementWithReplacement",
    "PlacementEvaluator",
    "ScalePlan",
    "SearchProgress",
    "SelectiveReplicationGreedy",
    "SelectiveReplicationILP",
    "SelectiveReplicationReplacement",
    "SelectiveReplicationSearch",
    "SelectiveReplicationUniform",
    "highest_rate_scale",
    "placement_upper_bound",
    "plan_capacity",
    "tightest_slo_scale",
]
