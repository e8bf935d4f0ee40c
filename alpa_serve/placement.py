"""Models, cluster and placement: the words that the simulator, the policies and the runtime share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alpa_serve.device_layout import first_devices
from alpa_serve.errors import InvalidConfigError, InvalidPlacementError, InvalidProfileError
from alpa_serve.profiles.result import check_parallel_config
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.util import GB
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROUNDING = 1e-12
"""Share by which a sum of weights may be off: searches and newer versions of Python do not round it alike."""


@dataclass
class ModelData:
    """A model to serve, with the load it is expected to see.

    Attributes
    ----------
    name : str
    slo : float
        Latency objective in seconds from arrival; infinity for none.
    rate : float
        Expected requests per second.
    cv : float
        Expected coefficient of variation of the gaps between requests.
    profiling_result : ProfilingResult
    concurrent_tokens : int
        Tokens >= 0 (prompts and answers) whose KV cache a replica must hold at the same time, beside its weights; 0, as
        in AlpaServe, counts the weights alone.

    Raises
    ------
    InvalidConfigError
        If a figure is negative or NaN, or the profile is not a ProfilingResult.
    """

    name: str
    slo: float
    rate: float
    cv: float
    profiling_result: ProfilingResult
    concurrent_tokens: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_real(self.slo, f"slo of model {self.name!r}", minimum=0.0, finite=False)
        check_real(self.rate, f"rate of model {self.name!r}", minimum=0.0)
        check_real(self.cv, f"cv of model {self.name!r}", minimum=0.0)
        if not isinstance(self.profiling_result, ProfilingResult):
            raise InvalidConfigError(
                f"profiling_result of model {self.name!r} must be a ProfilingResult, got {self.profiling_result!r}"
            )
        check_int(self.concurrent_tokens, f"concurrent_tokens of model {self.name!r}", minimum=0)

    def memory_bytes(self, config: ParallelConfig) -> float:
        """Return the bytes that a replica takes on the fullest device of a group of `config`: weights and KV cache.

        Raises
        ------
        InvalidProfileError
            If the profile lacks the config or, with concurrent tokens, its KV cache per token.
        """
        return self.profiling_result.memory_bytes(config, self.concurrent_tokens)


@dataclass
class ClusterEnv:
    """The devices to place models on.

    Attributes
    ----------
    num_devices : int
    mem_budget : float
        Bytes of weights (and KV cache, where models state concurrent tokens) that one device can hold.
    num_devices_per_node : int
        A group lies within a node or takes whole nodes.

    Raises
    ------
    InvalidConfigError
        If a figure is out of range.
    """

    num_devices: int
    mem_budget: float
    num_devices_per_node: int = 8

    def __post_init__(self) -> None:
        check_int(self.num_devices, "num_devices", minimum=1)
        check_real(self.mem_budget, "mem_budget (bytes)", minimum=0.0, exclusive=True)
        check_int(self.num_devices_per_node, "num_devices_per_node", minimum=1)

    def allows_group_of(self, size: int) -> bool:
        """Tell whether a group of `size` devices lies within a node or takes whole nodes."""
        return size <= self.num_devices_per_node or size % self.num_devices_per_node == 0

    def can_hold(self, sizes: Sequence[int]) -> bool:
        """Tell whether groups of these sizes (devices) fit without tearing a node."""
        try:
            first_devices(list(sizes), self.num_devices, self.num_devices_per_node)
        except InvalidPlacementError:
            return False
        return True


@dataclass
class ModelPlacement:
    """Which groups there are and which models each holds.

    Attributes
    ----------
    group_configs : list of ParallelConfig
        Per group, how it splits its models.
    group_models : list of list of int
        Per group, the ids (positions in the list of ModelData) of its models.
    """

    group_configs: list[ParallelConfig]
    group_models: list[list[int]]

    def __post_init__(self) -> None:
        try:
            configs = list(self.group_configs)
            # many groups are of one config, and often of the same object
            first_with: dict[int, int] = {}
            for g, config in enumerate(configs):
                first_with.setdefault(id(config), g)
            checked = {key: check_parallel_config(configs[g], f"group {g}") for key, g in first_with.items()}
            self.group_configs = [checked[id(config)] for config in configs]
        except InvalidProfileError as error:
            raise InvalidPlacementError(str(error)) from None
        self.group_models = [
            [_check_id(model_id, f"group {g}: model id") for model_id in models]
            for g, models in enumerate(self.group_models)
        ]
        if len(self.group_configs) != len(self.group_models):
            raise InvalidPlacementError(
                f"a placement needs as many group_models as group_configs, "
                f"got {len(self.group_models)} and {len(self.group_configs)}"
            )

    @classmethod
    def _of(cls, group_configs: list[ParallelConfig], group_models: list[list[int]]) -> ModelPlacement:
        """Make a placement of parts of another one, which need no check."""
        placement = cls.__new__(cls)
        placement.group_configs = group_configs
        placement.group_models = group_models
        return placement

    @classmethod
    def empty_groups(cls, group_configs: Sequence[ParallelConfig]) -> ModelPlacement:
        """Return the placement of these groups that holds no model."""
        return cls(list(group_configs), [[] for _ in group_configs])

    @property
    def num_replicas(self) -> int:
        """Replicas over all groups and models."""
        return sum(map(len, self.group_models))

    def placed_models(self) -> set[int]:
        """Return the ids of the models that at least one group holds."""
        return {model_id for models in self.group_models for model_id in models}

    def add_model(self, group_id: int, model_id: int) -> ModelPlacement:
        """Return a copy in which group `group_id` holds model `model_id` too.

        Raises
        ------
        InvalidPlacementError
            If there is no such group.
        """
        if not 0 <= group_id < len(self.group_configs):
            raise InvalidPlacementError(f"no group {group_id}; groups are 0 to {len(self.group_configs) - 1}")
        grown = self.copy()
        grown.group_models[group_id].append(_check_id(model_id, "model id"))
        return grown

    def normalize(self) -> ModelPlacement:
        """Return the same placement with models sorted in each group and groups sorted by their models."""
        models = [sorted(group) for group in self.group_models]
        order = sorted(range(len(models)), key=models.__getitem__)
        return ModelPlacement._of([self.group_configs[g] for g in order], [models[g] for g in order])

    def copy(self) -> ModelPlacement:
        """Return a copy that shares no list with this one."""
        return ModelPlacement._of(list(self.group_configs), [list(models) for models in self.group_models])

    def verify(self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv) -> None:
        """Check that the placement is possible on `cluster_env`.

        Raises
        ------
        InvalidPlacementError
            Naming the group and what is wrong: an unknown or repeated model, a config that a profile lacks,
            too much weight and KV cache memory, or groups that the devices and nodes cannot hold.
        """
        for group_id, (config, models) in enumerate(zip(self.group_configs, self.group_models, strict=True)):
            where = f"group {group_id} {tuple(config)}"
            if len(set(models)) != len(models):
                raise InvalidPlacementError(f"{where} holds a model twice: {models}")
            for model_id in models:
                if not 0 <= model_id < len(model_datas):
                    raise InvalidPlacementError(f"{where}: no model {model_id}; models are 0 to {len(model_datas) - 1}")
            try:
                used = sum(model_datas[m].memory_bytes(config) for m in models)
            except InvalidProfileError as error:
                raise InvalidPlacementError(f"{where}: {error}") from error
            if used > cluster_env.mem_budget * (1 + _ROUNDING):
                raise InvalidPlacementError(
                    f"{where}: models {models} need {used / GB:.2f} GiB a device, "
                    f"mem_budget is {cluster_env.mem_budget / GB:.2f} GiB"
                )
        self.assign_devices(cluster_env)

    def assign_devices(self, cluster_env: ClusterEnv) -> list[list[int]]:
        """Give every group its devices: within one node, or whole nodes.

        Groups take devices in their order where that keeps them within nodes, else in an order that does.

        Returns
        -------
        list of list of int
            Device numbers per group, ascending; node k has devices k * num_devices_per_node and so on.

        Raises
        ------
        InvalidPlacementError
            If the devices or the nodes do not suffice.
        """
        sizes = [config.num_devices for config in self.group_configs]
        starts = first_devices(sizes, cluster_env.num_devices, cluster_env.num_devices_per_node)
        return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]

    def deployment(self, model_names: Sequence[str], cluster_env: ClusterEnv) -> list[ReplicaDeployment]:
        """List every replica with its devices, in the order of the models.

        Parameters
        ----------
        model_names : sequence of str
            What the deployment calls each model; names may repeat.
        cluster_env : ClusterEnv

        Returns
        -------
        list of ReplicaDeployment
            One per replica, ids from 1; a model that is not placed has one entry without devices.
        """
        devices = self.assign_devices(cluster_env)
        entries: list[ReplicaDeployment] = []
        for model_id, name in enumerate(model_names):
            groups = [g for g, models in enumerate(self.group_models) if model_id in models]
            for group_id in groups:
                config = self.group_configs[group_id]
                entries.append(
                    ReplicaDeployment(len(entries) + 1, name, tuple(devices[group_id]), config.op, config.pp)
                )
            if not groups:
                entries.append(ReplicaDeployment(len(entries) + 1, name, (), None, None))
        return entries


@dataclass(frozen=True)
class ReplicaDeployment:
    """Where one replica goes.

    Attributes
    ----------
    replica_id : int
        From 1, over all models.
    model : str
        Name of the model.
    device_assigned : tuple of int
        Device numbers; empty if the model is not placed.
    tp_size, pp_size : int or None
        Tensor and pipeline parallel degree; None if the model is not placed.
    """

    replica_id: int
    model: str
    device_assigned: tuple[int, ...]
    tp_size: int | None
    pp_size: int | None


@dataclass
class ModelPlacementWithReplacement:
    """Placements that take over from one another in time.

    Attributes
    ----------
    start_times : list of float
        Seconds, ascending; placement i serves the arrivals from start_times[i] on. The first one also serves what
        arrives before.
    placements : list of ModelPlacement
    """

    start_times: list[float]
    placements: list[ModelPlacement]

    def __post_init__(self) -> None:
        self.start_times = [check_real(t, "start time", error=InvalidPlacementError) for t in self.start_times]
        if len(self.start_times) != len(self.placements) or not self.placements:
            raise InvalidPlacementError(
                f"need one start time per placement, got {len(self.start_times)} and {len(self.placements)}"
            )
        if sorted(self.start_times) != self.start_times:
            raise InvalidPlacementError(f"start times must ascend, got {self.start_times}")

    def verify(self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv) -> None:
        """Check every placement (:meth:`ModelPlacement.verify`)."""
        for placement in self.placements:
            placement.verify(model_datas, cluster_env)


Placement = ModelPlacement | ModelPlacementWithReplacement


def _check_id(model_id: object, what: str) -> int:
    return check_int(model_id, what, minimum=0, error=InvalidPlacementError)
