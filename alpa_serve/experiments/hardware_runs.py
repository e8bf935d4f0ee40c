"""Recorded runs of placements on real hardware, request by request.

A run is a CSV file (plain or gzipped) with one row per request, as MaverIQ's evaluation recorded them on 8 RTX A6000;
an ``index.csv`` in the same folder may say more about the runs than their file names do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.experiments.text_table import check_column, read_text_table
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig
from alpa_serve.validation import check_real

if TYPE_CHECKING:
    import os

    import pandas as pd

COLUMNS = (
    "request_id",
    "scheduled_s",
    "arrival_s",
    "client_id",
    "model",
    "device_assigned",
    "tp",
    "pp",
    "measured_latency_s",
    "measured_service_s",
    "req_id",
    "status",
)
"""What a run file has; see :class:`RecordedRun` for those that count."""

STATUSES = ("served", "rejected_not_placed", "rejected_not_loaded", "queued_at_end", "sent_no_record")
"""What became of a request."""

CLOCK_TOLERANCE_S = 1.0
"""Seconds by which a service may be recorded to be longer than the latency that includes it."""

INDEX_FILE = "index.csv"

INDEX_COLUMNS = ("experiment", "baseline", "model_list", "trace", "scale", "slo_factor", "last_finish_s")
"""What the index must say of each run."""


class RecordedReplica(NamedTuple):
    """A loaded model: one client of the generator's.

    Attributes
    ----------
    client_id : int
    model : str
    devices : tuple of int
        Ascending.
    config : ParallelConfig
    """

    client_id: int
    model: str
    devices: tuple[int, ...]
    config: ParallelConfig


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """One run on real hardware.

    Attributes
    ----------
    experiment : str
        The other names and figures in one, such as ``AlpaServe*__large__code__0.1__5.0``.
    baseline, model_set, trace : str
    scale : float
        Factor on the requests per minute.
    slo_factor : float
        SLO over the latency of a single request (:func:`alpa_serve.experiments.hardware_replay.slo_s`).
    last_finish_s : float
        Seconds: end of the recording.
    frame : pandas.DataFrame
        A row per request in the order of arrival: arrival_s (seconds), client_id, model, latency_s (seconds from
        arrival to completion), service_s (seconds on the group alone), status; the seconds are NaN where the request
        was not served.
    replicas : dict of int to RecordedReplica
        By client id; a client that is not there was never placed.
    """

    experiment: str
    baseline: str
    model_set: str
    trace: str
    scale: float
    slo_factor: float
    last_finish_s: float
    frame: pd.DataFrame
    replicas: dict[int, RecordedReplica]

    @cached_property
    def groups(self) -> dict[tuple[int, ...], ParallelConfig]:
        """The config on each set of devices, in the order of the devices."""
        return {replica.devices: replica.config for replica in sorted(self.replicas.values(), key=_devices)}

    @cached_property
    def clients(self) -> dict[int, str]:
        """The model of each client, by ascending client id, placed or not."""
        first = self.frame.drop_duplicates("client_id").sort_values("client_id")
        return dict(zip(first["client_id"].tolist(), first["model"].tolist(), strict=True))

    @cached_property
    def load(self) -> pd.DataFrame:
        """The rows that the cluster had to serve: all but those rejected for want of a loaded model."""
        rejected = self.frame["status"].str.startswith("rejected")
        return self.frame[~rejected & self.frame["client_id"].isin(list(self.replicas))]

    @cached_property
    def served(self) -> pd.DataFrame:
        """The rows that were served."""
        return self.frame[self.frame["status"] == "served"]


class _Label(NamedTuple):
    experiment: str
    baseline: str
    model_set: str
    trace: str
    scale: float
    slo_factor: float
    last_finish_s: float


def read_runs(path: str | os.PathLike[str]) -> list[RecordedRun]:
    """Read every run of a folder, or one run file.

    Parameters
    ----------
    path : str or path-like
        A folder with ``*.csv`` or ``*.csv.gz`` files named ``BASELINE__MODELSET__TRACE__SCALE__SLO`` (``Star`` in the
        baseline stands for ``*``), or one of them. Where an ``index.csv`` lies beside them and lists the run, it says
        what the run was, else the name of the file does.

    Returns
    -------
    list of RecordedRun
        In the order of the file names.

    Raises
    ------
    InvalidTraceError
        If there is no run; naming file, line and column of what cannot be read.
    """
    place = Path(path)
    if not place.exists():
        raise InvalidTraceError(f"no such file or folder: {place}")
    folder = place if place.is_dir() else place.parent
    found = sorted(folder.iterdir()) if place.is_dir() else [place]
    files = [file for file in found if file.name.endswith((".csv", ".csv.gz")) and file.name != INDEX_FILE]
    if not files:
        raise InvalidTraceError(f"{place}: no run here; runs are files *.csv or *.csv.gz, one row per request")
    labels = _read_index(folder / INDEX_FILE) if (folder / INDEX_FILE).is_file() else {}
    runs = [_read_run(file, labels) for file in files]
    names = [run.experiment for run in runs]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise InvalidTraceError(f"{files[names.index(name)]} and {files[position]} are the same run, {name}")
    return runs


def _devices(replica: RecordedReplica) -> tuple[int, ...]:
    return replica.devices


def _read_index(path: Path) -> dict[str, _Label]:
    import pandas as pd

    raw = read_text_table(path, INDEX_COLUMNS).drop_duplicates(list(INDEX_COLUMNS))
    for column in ("experiment", "baseline", "model_list", "trace"):
        check_column(path, raw, column, raw[column].notna(), "no name")
    scale, factor, last = (
        _numbers(path, raw, column, float).tolist() for column in ("scale", "slo_factor", "last_finish_s")
    )
    check_column(path, raw, "experiment", ~raw["experiment"].duplicated(), "listed before with other figures")
    check_column(path, raw, "slo_factor", pd.to_numeric(raw["slo_factor"]) > 0, "not above 0")
    names = (raw[column].tolist() for column in ("experiment", "baseline", "model_list", "trace"))
    return {label[0]: _Label(*label) for label in zip(*names, scale, factor, last, strict=True)}


def _label_of(path: Path, labels: dict[str, _Label]) -> _Label:
    """Return what the index says of a run file, or what its name says."""
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    # a star cannot be part of a file name everywhere
    experiment = name.replace("Star__", "*__", 1)
    known = labels.get(experiment, labels.get(name))
    if known is not None:
        return known
    parts = experiment.split("__")
    try:
        baseline, model_set, trace, scale, slo_factor = parts
        figures = [
            check_real(
                float(text), f"{what} in the name of {path}", minimum=0.0, exclusive=True, error=InvalidTraceError
            )
            for text, what in ((scale, "the scale"), (slo_factor, "the SLO factor"))
        ]
    except ValueError as error:
        if isinstance(error, InvalidTraceError):
            raise
        raise InvalidTraceError(
            f"{path}: {INDEX_FILE} does not list this run, and its name is not BASELINE__MODELSET__TRACE__SCALE__SLO"
        ) from None
    return _Label(experiment, baseline, model_set, trace, figures[0], figures[1], 0.0)


def _numbers(
    path: Path, raw: pd.DataFrame, column: str, kind: type[float] | type[int], needed: pd.Series[bool] | None = None
) -> pd.Series[float]:
    """Return a column as numbers >= 0, NaN where it is empty and not needed."""
    import pandas as pd

    numbers = pd.to_numeric(raw[column], errors="coerce").astype(float)
    readable = (numbers >= 0) & (numbers < np.inf)
    if kind is int:
        readable &= numbers % 1 == 0
    if needed is not None:
        readable |= raw[column].isna() & ~needed
    check_column(path, raw, column, readable, "not a whole number >= 0" if kind is int else "not a number >= 0")
    return numbers


def _read_run(path: Path, labels: dict[str, _Label]) -> RecordedRun:
    import pandas as pd

    label = _label_of(path, labels)
    raw = read_text_table(path, COLUMNS)
    check_column(path, raw, "status", raw["status"].isin(STATUSES), "unknown status", f"; known: {', '.join(STATUSES)}")
    models = maveriq.model_names()
    check_column(path, raw, "model", raw["model"].isin(models), "unknown model", f"; known: {', '.join(models)}")
    served = raw["status"] == "served"
    frame = pd.DataFrame(
        {
            "arrival_s": _numbers(path, raw, "arrival_s", float),
            "client_id": _numbers(path, raw, "client_id", int).astype(int),
            "model": raw["model"],
            "latency_s": _numbers(path, raw, "measured_latency_s", float, served),
            "service_s": _numbers(path, raw, "measured_service_s", float, served),
            "status": raw["status"],
        }
    )
    begins_late_enough = ~(frame["service_s"] > frame["latency_s"] + CLOCK_TOLERANCE_S)
    check_column(path, raw, "measured_service_s", begins_late_enough, "more than measured_latency_s, which includes it")
    replicas = _read_replicas(path, raw, frame["client_id"])
    completed = frame["arrival_s"] + frame["latency_s"]
    # the index rounds, and the last completion is part of the recording
    last_finish_s = max(label.last_finish_s, float(completed[served].max()) if served.any() else 0.0)
    return RecordedRun(
        *label[:-1],
        last_finish_s=last_finish_s,
        frame=frame.sort_values("arrival_s", kind="stable", ignore_index=True),
        replicas=replicas,
    )


def _read_replicas(path: Path, raw: pd.DataFrame, client_ids: pd.Series[int]) -> dict[int, RecordedReplica]:
    """Return where each client's model is, after checking that all its rows agree and that groups are apart."""
    placed = raw["device_assigned"].notna()
    check_column(path, raw, "device_assigned", placed | (raw["status"] != "served"), "served without devices")
    op, pp = (_numbers(path, raw, column, int, placed) for column in ("tp", "pp"))
    replicas: dict[int, RecordedReplica] = {}
    models: dict[int, str] = {}
    rows = zip(raw.index, client_ids, raw["model"], raw["device_assigned"], op, pp, strict=True)
    for line, client_id, model, text, num_op, num_pp in rows:
        where = f"{path}, line {line}"
        if models.setdefault(client_id, model) != model:
            raise InvalidTraceError(f"{where}, column model: client {client_id} is {models[client_id]}, not {model}")
        if not isinstance(text, str):
            continue
        known = replicas.get(client_id)
        replica = RecordedReplica(
            client_id, model, _device_set(text, where), ParallelConfig(1, int(num_op), int(num_pp))
        )
        if known is None:
            _check_replica(replica, replicas, where)
            replicas[client_id] = replica
        elif known != replica:
            raise InvalidTraceError(
                f"{where}: client {client_id} is on devices {replica.devices} as {tuple(replica.config)}, but before "
                f"that on {known.devices} as {tuple(known.config)}"
            )
    return replicas


def _device_set(text: str, where: str) -> tuple[int, ...]:
    cells = text.replace(",", " ").split()
    if not all(cell.isdecimal() for cell in cells) or len(set(cells)) != len(cells) or not cells:
        raise InvalidTraceError(f"{where}, column device_assigned: not a list of devices: {text!r}")
    return tuple(sorted(map(int, cells)))


def _check_replica(replica: RecordedReplica, others: dict[int, RecordedReplica], where: str) -> None:
    config = replica.config
    if config.num_devices != len(replica.devices):
        raise InvalidTraceError(
            f"{where}, columns tp and pp: tp {config.op} and pp {config.pp} take {config.num_devices} devices, but "
            f"{len(replica.devices)} are assigned"
        )
    profiled = maveriq.load(replica.model).para_dict
    if config not in profiled:
        raise InvalidTraceError(
            f"{where}: {replica.model} is not profiled at tp {config.op}, pp {config.pp}; it is at (tp, pp) "
            f"{', '.join(str((known.op, known.pp)) for known in sorted(profiled))}"
        )
    for other in others.values():
        shared = set(other.devices) & set(replica.devices)
        if shared and (other.devices, other.config) != (replica.devices, config):
            raise InvalidTraceError(
                f"{where}: clients {other.client_id} and {replica.client_id} share devices {sorted(shared)} but not "
                "their group; only groups that are apart can be replayed"
            )
