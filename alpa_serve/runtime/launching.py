"""Starting the runtime: a controller on Ray, as AlpaServe's scripts start it."""

from __future__ import annotations

import sys
import time
import uuid
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alpa_serve.errors import InvalidConfigError, WorkerError
from alpa_serve.ray_connection import connect, first_line
from alpa_serve.runtime.controller_actor import Controller
from alpa_serve.runtime.group_process import MAX_CONCURRENCY
from alpa_serve.runtime.origin import Origin
from alpa_serve.runtime.ray_calls import cause_of
from alpa_serve.runtime.settings import CONTROLLER_NAME, ServerSettings
from alpa_serve.scheduling import RUNTIME, ServingRules, check_rules
from alpa_serve.util import add_sync_method

SYNCHRONISED = (
    "register_model",
    "create_mesh_group_manager",
    "create_replica",
    "delete_replica",
    "delete_model",
    "delete_mesh_group_manager",
)
"""The calls that ``controller.sync()`` waits for."""

FREED_TIMEOUT_S = 10.0
"""How long the name of a controller that was shut down may stay taken."""


def run_controller(
    host: str,
    port: int | None = None,
    root_path: str = "/",
    name: str = CONTROLLER_NAME,
    ssl_keyfile: str | None = None,
    ssl_certfile: str | None = None,
    *,
    rules: ServingRules = RUNTIME,
    settings: ServerSettings | None = None,
) -> Any:
    """Start a controller that listens on HTTP, and wait until it does.

    Parameters
    ----------
    host : str
        Address to listen on, of this machine.
    port : int, optional
        Any free one if left out; ``get_info`` tells.
    root_path : str
        Path under which all routes are.
    name : str
        Of its actor in Ray, within the namespace of this process.
    ssl_keyfile, ssl_certfile : str, optional
        Files of the private key and the certificate, for TLS.
    rules : ServingRules
        By which requests are dispatched and admitted.
    settings : ServerSettings, optional
        Limits, time-outs and the bearer token; the arguments before go before its fields of the same name.

    Returns
    -------
    ray.actor.ActorHandle
        Of :class:`~alpa_serve.runtime.controller_actor.Controller`, with ``sync()`` added: it waits for every earlier
        call that registers or creates something. The service ends with the program that started it, or by
        ``ray.get(controller.shutdown.remote())``.

    Raises
    ------
    InvalidConfigError
        If a setting is out of range, the address cannot be listened on, or a controller of this name runs already.
    WorkerError
        If Ray cannot be started, or the controller does not come up.
    """
    given: dict[str, Any] = {"port": port, "ssl_keyfile": ssl_keyfile, "ssl_certfile": ssl_certfile}
    if root_path != "/":
        given["root_path"] = root_path
    changes = {key: value for key, value in given.items() if value is not None}
    return start_controller(name, rules, replace(settings or ServerSettings(), host=host, **changes))


def start_controller(
    name: str, rules: ServingRules, settings: ServerSettings, *, awaits_placement: bool = False
) -> Any:
    """Start a controller as :func:`run_controller` does.

    Parameters
    ----------
    name : str
    rules : ServingRules
    settings : ServerSettings
    awaits_placement : bool
        Whether ``/healthz`` says that the service is starting until a placement is applied.
    """
    check_rules(rules)
    connect(ray, None)
    _free_name(name)
    node_id = ray.get_runtime_context().get_node_id()
    actor = ray.remote(Controller).options(
        name=name,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=MAX_CONCURRENCY,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    controller: Any = actor.remote(
        Origin(name, uuid.uuid4().hex[:8]), rules, settings, node_id, list(sys.path), awaits_placement
    )
    try:
        ray.get(controller.ready.remote())
    except RayTaskError as error:
        ray.kill(controller)
        raise cause_of(error) from None
    except RayActorError as error:
        raise WorkerError(f"the controller did not come up: {first_line(error)}") from error
    add_sync_method(controller, SYNCHRONISED)
    return controller


def shut_down(controller: Any) -> None:
    """Have a controller answer what was asked, and end the service; without effect where it has ended.

    A controller that is being restarted is waited for: its processes are there, and it ends them. If the wait is given
    up (Ctrl-C), or the controller fails, it is ended all the same, and its processes follow some seconds later.

    Parameters
    ----------
    controller : ray.actor.ActorHandle
    """
    try:
        ray.get(controller.shutdown.remote())
    except ActorUnavailableError:
        raise
    except RayActorError:
        # it has ended
        return
    except RayTaskError as error:
        raise cause_of(error) from None
    finally:
        ray.kill(controller)


def _free_name(name: str) -> None:
    """Make room for a controller of this name, where one was shut down."""
    try:
        former: Any = ray.get_actor(name)
    except ValueError:
        return
    if not hasattr(former, "get_info"):
        raise InvalidConfigError(f"an actor named {name!r} that is no controller runs already; pass another name")
    try:
        info: dict[str, Any] = ray.get(former.get_info.remote())
        is_closed = info["closed"]
    except ActorUnavailableError:
        # it is being restarted
        is_closed = False
    except RayActorError:
        is_closed = True
    if not is_closed:
        raise InvalidConfigError(
            f"a controller named {name!r} runs already; shut it down, or pass another name to this one"
        )
    # which may still be answering what was asked
    shut_down(former)
    until = time.monotonic() + FREED_TIMEOUT_S
    while time.monotonic() < until:
        try:
            ray.get_actor(name)
        except ValueError:
            return
        time.sleep(0.05)
    raise WorkerError(f"the name {name!r} of a controller that was shut down is not free after {FREED_TIMEOUT_S:g} s")
