"""Placement policies: which groups there are, how they split their models, and which models each holds."""

from alpa_serve.placement_policy.base_policy import (
    BasePlacementPolicy,
    ClusterEnv,
    ModelData,
    ModelPlacement,
    ModelPlacementWithReplacement,
    PlacementEvaluator,
)
from alpa_serve.placement_policy.model_parallelism import (
    ModelParallelismEqual,
    ModelParallelismGreedy,
    ModelParallelismILP,
    ModelParallelismRR,
    ModelParallelismSearch,
)
from alpa_serve.placement_policy.progress import SearchProgress
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
    "ClusterEnv",
    "ModelData",
    "ModelParallelismEqual",
    "ModelParallelismGreedy",
    "ModelParallelismILP",
    "ModelParallelismRR",
    "ModelParallelismSearch",
    "ModelPlacement",
    "ModelPlacementWithReplacement",
    "PlacementEvaluator",
    "SearchProgress",
    "SelectiveReplicationGreedy",
    "SelectiveReplicationILP",
    "SelectiveReplicationReplacement",
    "SelectiveReplicationSearch",
    "SelectiveReplicationUniform",
    "placement_upper_bound",
]
