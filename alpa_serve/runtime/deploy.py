"""From a placement to a service, and from one placement to the next while it serves."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from alpa_serve.device_layout import group_shape
from alpa_serve.errors import InvalidConfigError, InvalidPlacementError, ServingError
from alpa_serve.placement import ClusterEnv, ModelPlacement, ModelPlacementWithReplacement
from alpa_serve.placement_json import read_placement
from alpa_serve.profiling import ParallelConfig
from alpa_serve.ray_connection import first_line
from alpa_serve.runtime.launching import shut_down, start_controller
from alpa_serve.runtime.models.emulated import EmulatedModel
from alpa_serve.runtime.placement_moves import GroupSpec
from alpa_serve.runtime.ray_calls import cause_of, node_resources
from alpa_serve.runtime.settings import CONTROLLER_NAME, LOCALHOST, ServerSettings
from alpa_serve.scheduling import RUNTIME

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping, Sequence

    from alpa_serve.placement import ModelData
    from alpa_serve.scheduling import ServingRules

    PlacementSource = ModelPlacement | str | os.PathLike[str]

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
"""How often a placement is given to a controller that dies while it applies it."""


class Deployment:
    """A placement that is being served.

    Attributes
    ----------
    controller : ray.actor.ActorHandle
    url : str
        Where it listens.
    placement : ModelPlacement or None
        The one that is served; what of it is served after a change that failed half way. None if that is not known: a
        change was given up, or the service did not answer.
    """

    def __init__(
        self,
        controller: Any,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        *,
        defined: Collection[str] = (),
        with_gpus: bool = False,
    ) -> None:
        self.controller = controller
        self.url: str = ray.get(controller.get_info.remote())["url"]
        self.placement: ModelPlacement | None = ModelPlacement([], [])
        self._model_datas = list(model_datas)
        self._cluster_env = cluster_env
        self._defined = frozenset(defined)
        self._with_gpus = with_gpus

    def apply_placement(self, placement: PlacementSource) -> None:
        """Move to another placement of the same models; no request is lost.

        Groups of the same config stay, and only their replicas change; what is new is started beside what is there
        where the cluster has room for both. What goes answers what it has been given, for which it has
        ``request_timeout_s`` of the settings, and is ended then; this returns when all is gone. Requests for a model
        that has no replica in between wait for one for up to ``recovery_timeout_s``. Where there is no room for new
        groups beside the old, that is to be longer than models take to load, and the longest request to be answered.

        If the controller dies meanwhile, the change is given to its successor. Changes that are asked for at the same
        time come one after the other, in no certain order.

        Raises
        ------
        InvalidPlacementError
            If it is not possible on the cluster; nothing has changed then.
        InfeasiblePlacementError
            If Ray has no room for a group. Nothing has changed, unless the group could be started only after others had
            left; then these are gone, and :attr:`placement` is what is served.
        InvalidConfigError
            If a model cannot be made, or GroupLostError, if a group dies while it makes a replica. In a group that is
            new nothing has changed, as above; in one that stays, all but this replica is as wanted.
        ServingError
            If the service was shut down, or its controller dies over and over.
        """
        found = _placement_of(placement, self._model_datas)
        _verify(found, self._model_datas, self._cluster_env, self._defined)
        per_node = self._cluster_env.num_devices_per_node
        wanted = []
        for config, members in zip(found.group_configs, found.group_models, strict=True):
            shape = group_shape(config.num_devices, per_node)
            names = tuple(self._model_datas[model_id].name for model_id in members)
            wanted.append(GroupSpec(config, shape, names, ((config, shape), {})))
        # unless it comes to an end that says what there is
        self.placement = None
        try:
            self._apply(wanted)
        except Exception:
            self.placement = self._served()
            raise
        self.placement = found.copy()

    def _apply(self, wanted: Sequence[GroupSpec]) -> None:
        # not by Ray: a change that this program has given up must not come again after a later one
        for _ in range(MAX_ATTEMPTS):
            try:
                _get(self.controller.apply_placement.remote(wanted, self._with_gpus))
                return
            except RayActorError as error:
                logger.warning("the controller died while it applied a placement: %s", first_line(error))
            try:
                _get(self.controller.ready.remote())
            except RayActorError:
                raise ServingError("the service has ended") from None
        raise ServingError(f"the controller died {MAX_ATTEMPTS} times while it applied a placement")

    def _served(self) -> ModelPlacement | None:
        """Return what there is, or None if nobody says."""
        try:
            info: dict[str, Any] = ray.get(self.controller.get_info.remote())
        except RayError:
            logger.warning("it is not known which placement is served", exc_info=True)
            return None
        ids = {data.name: model_id for model_id, data in enumerate(self._model_datas)}
        placed = [group_id for group_id, config in info["group_configs"].items() if config is not None]
        return ModelPlacement(
            [ParallelConfig(*info["group_configs"][group_id]) for group_id in placed],
            [sorted(ids[name] for name in info["groups"][group_id] if name in ids) for group_id in placed],
        )

    def follow(self, schedule: ModelPlacementWithReplacement, began: float | None = None) -> None:
        """Apply each placement of a schedule when its time has come; return when the last is applied.

        Parameters
        ----------
        schedule : ModelPlacementWithReplacement
            As SelectiveReplicationReplacement finds it.
        began : float, optional
            When its time 0 was, in seconds of :func:`time.time`; now if left out.
        """
        zero = time.time() if began is None else began
        for start, placement in zip(schedule.start_times, schedule.placements, strict=True):
            # the first also serves what arrives before
            if placement is not schedule.placements[0]:
                time.sleep(max(0.0, zero + start - time.time()))
            if placement != self.placement:
                logger.info("applying the placement of %g s", start)
                self.apply_placement(placement)

    def warmup(self) -> dict[str, dict[int, float]]:
        """Measure how long replicas take in proportion to their profiles; requests are scheduled by that.

        Returns
        -------
        dict of str to dict of int to float
            Model -> group -> measured / profiled time.
        """
        scales: dict[str, dict[int, float]] = _get(self.controller.warmup.remote())
        return scales

    def shutdown(self) -> None:
        """Answer what was asked, and end the service; without effect where it has ended."""
        shut_down(self.controller)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()


def deploy(
    placement: PlacementSource | ModelPlacementWithReplacement,
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    *,
    host: str = LOCALHOST,
    port: int | None = None,
    name: str = CONTROLLER_NAME,
    rules: ServingRules = RUNTIME,
    settings: ServerSettings | None = None,
    model_defs: Mapping[str, Callable[..., Any]] | None = None,
    enable_batching: bool = False,
    with_gpus: bool | None = None,
) -> Deployment:
    """Serve a placement.

    Parameters
    ----------
    placement : ModelPlacement, path, or ModelPlacementWithReplacement
        The path is of a file that :func:`alpa_serve.placement_json.to_json` wrote, whose names are those of
        `model_datas`. Of placements that take over from one another the first is served; :meth:`Deployment.follow`
        goes on with the others.
    model_datas : sequence of ModelData
        The models, by id.
    cluster_env : ClusterEnv
    host, port, name, rules, settings
        As :func:`~alpa_serve.runtime.launching.run_controller` has them.
    model_defs : mapping of str to callable, optional
        What makes a replica of a model: ``model_def(parallel_config, (hosts, devices per host))``; an
        :class:`EmulatedModel` with its profile where there is none. The profile of a model that is given here need not
        have what the placement asks for.
    enable_batching : bool
        Whether emulated models serve in batches where their profiles have several batch sizes.
    with_gpus : bool, optional
        Whether every device is one of Ray's GPUs; by default if `model_defs` are given and the cluster has GPUs, free
        or not. False for models that other servers answer for, which have the GPUs.

    Returns
    -------
    Deployment
        Also a context manager, which shuts it down.

    Raises
    ------
    InvalidPlacementError
        If the placement is not possible on the cluster, or its file is not what it should be.
    InvalidConfigError
        If a setting is out of range, or `model_defs` names no model.
    """
    first = placement.placements[0] if isinstance(placement, ModelPlacementWithReplacement) else placement
    names = [data.name for data in model_datas]
    if len(set(names)) != len(names):
        raise InvalidConfigError(f"model names must differ, got {names}")
    defs = dict(model_defs or {})
    for unknown in defs.keys() - set(names):
        raise InvalidConfigError(f"model_defs: unknown model {unknown!r}; models: {', '.join(names)}")
    # before anything is started
    first = _placement_of(first, model_datas)
    _verify(first, model_datas, cluster_env, defs)
    where: dict[str, Any] = {"host": host} if port is None else {"host": host, "port": port}
    controller = start_controller(name, rules, replace(settings or ServerSettings(), **where), awaits_placement=True)
    try:
        # the router keeps the intervals between requests itself
        own_rules = replace(rules, dispatch_interval_s=0.0)
        for data in model_datas:
            model: tuple[Any, ...] = (defs.get(data.name),)
            if data.name not in defs:
                options = {"rules": own_rules, "enable_batching": enable_batching, "name": data.name}
                model = (EmulatedModel, [data.profiling_result], options)
            # one after the other, so that they are listed in their order
            _get(controller.register_model.remote(data.name, *model))
        if with_gpus is None:
            with_gpus = bool(defs) and any(node.get("GPU", 0) > 0 for node in node_resources())
        deployment = Deployment(controller, model_datas, cluster_env, defined=defs, with_gpus=with_gpus)
        deployment.apply_placement(first)
    except BaseException:
        try:
            shut_down(controller)
        except Exception:
            # what went wrong before is what the caller must see
            logger.exception("the service was ended before it could be shut down")
        raise
    return deployment


def _placement_of(source: PlacementSource, model_datas: Sequence[ModelData]) -> ModelPlacement:
    if isinstance(source, ModelPlacement):
        return source
    try:
        path = Path(source)
    except TypeError:
        raise InvalidPlacementError(
            f"a placement is a ModelPlacement or the path of its file, got {source!r}"
        ) from None
    return read_placement(path, [data.name for data in model_datas]).placement


def _verify(
    placement: ModelPlacement, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, defined: Collection[str]
) -> None:
    """Check a placement, but for what models of other servers take, which is not known here."""
    for group_id, members in enumerate(placement.group_models):
        for model_id in members:
            if model_id >= len(model_datas):
                raise InvalidPlacementError(
                    f"group {group_id}: no model {model_id}; models are 0 to {len(model_datas) - 1}"
                )
    emulated = [
        [model_id for model_id in members if model_datas[model_id].name not in defined]
        for members in placement.group_models
    ]
    ModelPlacement(placement.group_configs, emulated).verify(model_datas, cluster_env)


def _get(ref: Any) -> Any:
    """Return the result of a call to the controller, or raise what was raised there."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise cause_of(error) from None
