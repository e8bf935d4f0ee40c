"""Coming by a Ray: the one of this process, one of this machine, or a cluster to join, in bounded time."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from typing import Any

from alpa_serve.errors import WorkerError

JOIN_TIMEOUT_S = 30.0
"""How long joining a cluster may take. Ray itself tries for two minutes, and then ends the process."""


def import_ray() -> Any:
    """Return the package ray, imported here at the earliest.

    Raises
    ------
    WorkerError
        If it cannot be imported.
    """
    try:
        import ray
        import ray.cloudpickle
        import ray.exceptions
    except ImportError as error:
        raise WorkerError(
            f"worker processes need the package ray, which cannot be imported ({error}): pip install 'ray>=2.40', "
            "or use one worker"
        ) from error
    return ray


def connect(ray: Any, num_cpus: int | None, address: str | None = None, *, namespace: str | None = None) -> bool:
    """Have Ray initialised in this process.

    Parameters
    ----------
    ray : module
    num_cpus : int or None
        Of a Ray that is started here; None for the cores of this machine.
    address : str, optional
        Of a cluster to join, as ``ray.init`` takes it; if left out, a Ray is started on this machine.
    namespace : str, optional
        Of the actors of this process; a name that nobody else has if left out.

    Returns
    -------
    bool
        Whether it was not initialised before.

    Raises
    ------
    WorkerError
        If it cannot be started, or the cluster cannot be joined.
    """
    if ray.is_initialized():
        joined = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", joined):
            raise WorkerError(
                f"this process is connected to the Ray at {joined} and cannot join {address!r}, too: leave out the "
                "address, or call ray.shutdown() before"
            )
        return False
    local = address in (None, "local")
    if not local:
        _check_joinable(str(address))
    options: dict[str, Any] = {"num_cpus": num_cpus, "include_dashboard": False} if local else {}
    try:
        # without an address, Ray would join whatever cluster it finds
        ray.init(
            "local" if local else address,
            namespace=namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
    except BaseException as error:
        ray.shutdown()
        if not isinstance(error, Exception):
            raise
        what = "a local Ray could not be started" if local else f"the Ray cluster {address!r} could not be joined"
        raise WorkerError(f"{what}: {first_line(error)}") from error
    return True


def _check_joinable(address: str) -> None:
    """Check that a cluster can be joined, in bounded time and without risk to this process.

    Raises
    ------
    WorkerError
        Naming the address.
    """
    said = f"the Ray cluster {address!r} could not be joined"
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if address != "auto":
        if not host or not port.isdigit():
            raise WorkerError(f"{said}: an address is host:port, ray://host:port, 'auto' or 'local'")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise WorkerError(f"{said}: nothing answers at {host}, port {port} ({error})") from error
    # something answers, but ray.init would end this process if that is no Ray
    trial = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)"
    try:
        subprocess.run(
            [sys.executable, "-c", trial, address], check=True, capture_output=True, text=True, timeout=JOIN_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise WorkerError(
            f"{said} within {JOIN_TIMEOUT_S:g} s; is it the address that `ray start --head` printed?"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2]
        raise WorkerError(f"{said}: {reason or f'exit code {error.returncode}'}") from None


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]
