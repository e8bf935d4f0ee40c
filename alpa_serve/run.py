"""``python -m alpa_serve.run``: start the runtime, and serve a placement if one is given."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import threading
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpa_serve import profiles
from alpa_serve.api_key import API_KEY_VARIABLE, read_api_key
from alpa_serve.errors import AlpaServeError, InvalidConfigError
from alpa_serve.placement import ClusterEnv, ModelData
from alpa_serve.placement_json import read_placement
from alpa_serve.profiles.named import NAMED_PROFILE, load_profiles
from alpa_serve.profiling import ProfilingResult
from alpa_serve.runtime.settings import CONTROLLER_NAME, LOCALHOST, ServerSettings
from alpa_serve.scheduling.rules import RULES_BY_NAME
from alpa_serve.util import GB
from alpa_serve.validation import check_known

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NAMED_BACKEND = "NAME=URL[#MODEL]"
"""The form in which a server is given that answers for a model."""

NAMED_KEY_FILE = "NAME=FILE"
"""The form in which the file with a server's bearer token is given."""

DEFAULT_PORT = 8000

CHECK_INTERVAL_S = 5.0
"""How often it is seen whether the service is there still."""

_LIMITS = {
    "max_body_bytes": "longest request body in bytes",
    "max_queue": "requests that a group may have at the same time",
    "request_timeout_s": "seconds that a request may take",
    "drain_timeout_s": "seconds that requests have to finish at the end",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if left out.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    try:
        return _serve(options)
    except (AlpaServeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the service was up", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alpa_serve.run",
        description="Start the serving runtime on Ray; Ctrl-C or SIGTERM answers what was asked, and ends it.",
    )
    parser.add_argument("--host", default=LOCALHOST, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 for any free one (default: %(default)s)")
    parser.add_argument("--root-path", default="/", help="path under which all routes are (default: %(default)s)")
    parser.add_argument(
        "--name", default=CONTROLLER_NAME, help="of the controller's actor in Ray (default: %(default)s)"
    )
    parser.add_argument(
        "--address",
        help="Ray to join: host:port, or auto for one of this machine (default: $RAY_ADDRESS, else start one)",
    )
    parser.add_argument("--ssl-keyfile", help="private key, for TLS")
    parser.add_argument("--ssl-certfile", help="certificate, for TLS")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        help=f"file with the bearer token that clients must bring (default: that in ${API_KEY_VARIABLE}, if any)",
    )
    parser.add_argument(
        "--rules", choices=list(RULES_BY_NAME), default="runtime", help="how requests are served (default: %(default)s)"
    )
    placed = parser.add_argument_group("a placement to serve")
    placed.add_argument("--placement", type=Path, metavar="FILE", help="as alpa_serve.placement_json writes it")
    placed.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar=NAMED_PROFILE,
        help="emulate model NAME by this profile, such as m0=llama-2-7b or m0=alpa/bert-1.3b@profiles.pkl; repeatable "
        "(default: the profile of its own name)",
    )
    placed.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar=NAMED_BACKEND,
        help="have a server with OpenAI's API answer for model NAME, which is called MODEL there",
    )
    placed.add_argument(
        "--backend-api-key-file",
        action="append",
        default=[],
        metavar=NAMED_KEY_FILE,
        help="file with the bearer token that the server of model NAME wants; repeatable",
    )
    placed.add_argument("--batching", action="store_true", help="emulate batching where the profile has batch sizes")
    placed.add_argument("--mem-budget", type=float, metavar="GIB", help="refuse groups with more weights a device")
    placed.add_argument("--num-devices-per-node", type=int, default=8, help="(default: %(default)s)")
    gpus = placed.add_mutually_exclusive_group()
    gpus.add_argument(
        "--with-gpus", action="store_true", help="set a GPU of Ray's aside for every device (default: --no-gpus)"
    )
    gpus.add_argument(
        "--no-gpus",
        dest="with_gpus",
        action="store_false",
        help="set none aside: emulated models need none, and the servers of backends have theirs",
    )
    parser.set_defaults(with_gpus=False)
    limits = parser.add_argument_group("limits")
    types = {field.name: field for field in fields(ServerSettings)}
    for name, meaning in _LIMITS.items():
        default: Any = types[name].default
        limits.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{meaning} (default: {default:g})"
        )
    return parser


def _serve(options: argparse.Namespace) -> int:
    settings = ServerSettings(
        host=options.host,
        port=options.port,
        root_path=options.root_path,
        ssl_keyfile=options.ssl_keyfile,
        ssl_certfile=options.ssl_certfile,
        api_key=read_api_key(options.api_key_file),
        **{name: getattr(options, name) for name in _LIMITS},
    )
    placed = None if options.placement is None else _Placed(options)
    if placed is None and (options.profile or options.backend or options.backend_api_key_file or options.with_gpus):
        raise InvalidConfigError("--profile, --backend, --backend-api-key-file and --with-gpus go with --placement")

    # Ray takes seconds to import: what is wrong with the arguments is said before
    import ray

    from alpa_serve.ray_connection import connect
    from alpa_serve.runtime.deploy import deploy
    from alpa_serve.runtime.launching import run_controller, shut_down
    from alpa_serve.runtime.origin import NAMESPACE

    connect(ray, None, options.address or os.environ.get("RAY_ADDRESS") or None, namespace=NAMESPACE)
    try:
        stop = _stop_on_signals()
        rules = RULES_BY_NAME[options.rules]
        if placed is None:
            controller = run_controller(options.host, name=options.name, rules=rules, settings=settings)
        else:
            controller = deploy(
                placed.placement,
                placed.model_datas,
                placed.cluster_env,
                host=options.host,
                name=options.name,
                rules=rules,
                settings=settings,
                model_defs=placed.model_defs,
                enable_batching=options.batching,
                with_gpus=options.with_gpus,
            ).controller
        info = ray.get(controller.get_info.remote())
        print(f"serving {len(info['models'])} models in {len(info['groups'])} groups at {info['url']}", flush=True)
        code = _wait(controller, stop)
        if code == 0:
            print("answering what was asked; once more to stop at once", flush=True)
            try:
                shut_down(controller)
            except KeyboardInterrupt:
                print("stopped before all that was asked was answered", file=sys.stderr)
                return 130
            print("stopped", flush=True)
        return code
    finally:
        ray.shutdown()


def _stop_on_signals() -> threading.Event:
    """Return an event that the first SIGINT or SIGTERM sets; the second one ends the program."""
    stop = threading.Event()

    def note(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return stop


def _wait(controller: Any, stop: threading.Event) -> int:
    """Wait until told to stop, and return 0; 1 if the service is gone before."""
    import ray

    # answered late by a controller that is being restarted, without which requests are served
    asked = controller.ready.remote()
    while not stop.wait(CHECK_INTERVAL_S):
        if not ray.wait([asked], timeout=0)[0]:
            continue
        try:
            ray.get(asked)
        except ray.exceptions.ActorUnavailableError:
            pass
        except ray.exceptions.RayError as error:
            print(f"error: the controller is gone: {error}", file=sys.stderr)
            return 1
        asked = controller.ready.remote()
    return 0


class _Placed:
    """The placement of the arguments, and what its models are."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.placement, names = read_placement(options.placement)
        known = load_profiles(options.profile, names)
        keys = dict(_backend_key(text) for text in options.backend_api_key_file)
        self.model_defs = dict(_backend(text, names, keys) for text in options.backend)
        for name in keys:
            check_known(name, self.model_defs, "model with a --backend")
        for name in known.keys() & self.model_defs.keys():
            raise InvalidConfigError(f"model {name!r} has both a --profile and a --backend")
        self.model_datas = [
            ModelData(
                name,
                math.inf,
                0.0,
                0.0,
                ProfilingResult(name) if name in self.model_defs else known.get(name) or _own_profile(name),
            )
            for name in names
        ]
        budget = sys.float_info.max if options.mem_budget is None else options.mem_budget * GB
        devices = sum(config.num_devices for config in self.placement.group_configs)
        # groups may leave devices of a node unused
        self.cluster_env = ClusterEnv(
            max(1, devices) * options.num_devices_per_node, budget, options.num_devices_per_node
        )


def _own_profile(name: str) -> ProfilingResult:
    try:
        return profiles.load(name)
    except AlpaServeError as error:
        raise InvalidConfigError(
            f"model {name!r}: {error}; say what serves it with --profile {name}=... or --backend {name}=..."
        ) from error


def _backend_key(text: str) -> tuple[str, str | None]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InvalidConfigError(f"backend-api-key-file: {NAMED_KEY_FILE} is wanted, got {text!r}")
    return name, read_api_key(Path(path))


def _backend(text: str, names: Sequence[str], keys: Mapping[str, str | None]) -> tuple[str, Callable[..., Any]]:
    from alpa_serve.runtime.models import OpenAICompatibleModel

    name, equals, server = text.partition("=")
    if not (name and equals and server):
        raise InvalidConfigError(f"backend: {NAMED_BACKEND} is wanted, got {text!r}")
    check_known(name, names, "model")
    url, _, model = server.partition("#")
    make = partial(OpenAICompatibleModel, url, model or name, api_key=keys.get(name))
    # what is wrong with the address or the token is said here, not by every group
    make()
    return name, make


if __name__ == "__main__":
    sys.exit(main())
