"""A file of profiles in AlpaServe's pickle form, read without running anything that is in it."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import tempfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles import tsv
from alpa_serve.profiles.result import LatencyMemData, ProfilingResult, check_parallel_config

if TYPE_CHECKING:
    import io

_PROFILE_MODULE = "alpa_serve.profiling"
_CONTAINERS: dict[tuple[str, str], Any] = {
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
}
_NUMPY_BUILDERS = {"scalar", "_reconstruct"}
_NUMPY_MODULES = {"numpy.core.multiarray", "numpy._core.multiarray"}


class _ProfileUnpickler(pickle.Unpickler):
    """Admits profiles, plain containers and numbers.

    Profile classes come out as stand-ins made for this one load, so that a crafted file can reach no class of the
    process.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file)
        self.result_class = type("ProfilingResult", (), {})
        self.data_class = type("LatencyMemData", (), {})
        self._admitted: dict[tuple[str, str], Any] = {
            **_CONTAINERS,
            (_PROFILE_MODULE, "ProfilingResult"): self.result_class,
            (_PROFILE_MODULE, "LatencyMemData"): self.data_class,
            (_PROFILE_MODULE, "ParallelConfig"): type("ParallelConfig", (tuple,), {"__new__": _new_config}),
        }

    def find_class(self, module: str, name: str) -> Any:
        if module in _NUMPY_MODULES and name in _NUMPY_BUILDERS:
            # numpy moved this private module in 2.0; pickles of both ages must load
            home = "numpy._core.multiarray" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core.multiarray"
            return getattr(importlib.import_module(home), name)
        try:
            return self._admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a profile") from None


def _new_config(cls: type, dp: object, op: object, pp: object) -> tuple[object, ...]:
    return tuple.__new__(cls, (dp, op, pp))


class ProfilingDatabase:
    """Profiles by model name, kept in a pickle file that AlpaServe can read and write too.

    Parameters
    ----------
    database_filename : path-like
        The file; used exactly as given.
    new_database : bool
        Start empty instead of reading the file. Nothing is written before :meth:`materialize`.

    Attributes
    ----------
    results : dict of str to ProfilingResult

    Raises
    ------
    InvalidProfileError
        If the file is not a pickled dict of profiles. Nothing in such a file is run.
    FileNotFoundError
        If the file does not exist.
    """

    def __init__(self, database_filename: str | os.PathLike[str], new_database: bool = False) -> None:
        self.database_filename = database_filename
        self.results: dict[str, ProfilingResult] = {} if new_database else _read_pickle(Path(database_filename))

    def get(self, name: str) -> ProfilingResult | None:
        """Return the profile of a model, None if absent."""
        return self.results.get(name)

    def update(self, result: ProfilingResult) -> None:
        """Add a profile, replacing one of the same name."""
        self.results[result.model_name] = result

    def update_from_csv(self, file_name: str | os.PathLike[str]) -> None:
        """Add the measurements of a file of manual configs (:func:`alpa_serve.profiles.tsv.read_manual`).

        Raises
        ------
        InvalidProfileError
            Naming file, line and column; the database is then unchanged.
        """
        self._add(tsv.read_manual(file_name))

    def update_from_auto_csv(self, file_name: str | os.PathLike[str]) -> None:
        """Add the measurements of a file of automatic configs (:func:`alpa_serve.profiles.tsv.read_auto`).

        Raises
        ------
        InvalidProfileError
            Naming file, line and column; the database is then unchanged.
        """
        self._add(tsv.read_auto(file_name))

    def _add(self, rows: list[tsv.ProfileRow]) -> None:
        for row in rows:
            row.add_to(self.results.setdefault(row.model_name, ProfilingResult(row.model_name)))

    def materialize(self) -> None:
        """Write all profiles to the file, replacing it in one step."""
        path = Path(self.database_filename)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                pickle.dump(self.results, file)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise


def _read_pickle(path: Path) -> dict[str, ProfilingResult]:
    with path.open("rb") as file:
        unpickler = _ProfileUnpickler(file)
        try:
            loaded = unpickler.load()
        except Exception as error:
            # a damaged or crafted pickle can make the machinery fail in any way
            raise InvalidProfileError(f"{path}: not a file of profiles: {error}") from error
    if not isinstance(loaded, dict):
        raise InvalidProfileError(f"{path}: expected a dict of model name to profile, found a {type(loaded).__name__}")
    results = {}
    for name, stand_in in loaded.items():
        if not isinstance(name, str) or not isinstance(stand_in, unpickler.result_class):
            raise InvalidProfileError(f"{path}: entry {name!r} is not a profile")
        results[name] = _checked_result(stand_in, unpickler.data_class, f"{path}: profile {name!r}")
    return results


def _checked_result(stand_in: Any, data_class: type, where: str) -> ProfilingResult:
    """Rebuild a profile from its stand-in, checking every figure."""
    state = vars(stand_in)
    para_dict = state.get("para_dict")
    if not isinstance(state.get("model_name"), str) or not isinstance(para_dict, dict):
        raise InvalidProfileError(f"{where}: needs model_name and para_dict, has {sorted(state)}")
    result = ProfilingResult(
        state["model_name"],
        preprocess_cpu=state.get("preprocess_cpu", 0.0),
        postprocess_cpu=state.get("postprocess_cpu", 0.0),
    )
    for key, data in para_dict.items():
        config = check_parallel_config(key, where)
        fields = vars(data) if isinstance(data, data_class) else {}
        latency, act_mem, weight_mem = (fields.get(name) for name in ("latency", "act_mem", "weight_mem"))
        if not isinstance(latency, dict) or not isinstance(act_mem, dict) or not latency:
            raise InvalidProfileError(f"{where}, config {tuple(config)}: needs latency, act_mem and weight_mem")
        for batch_size, stage_latency in latency.items():
            result.add_result(
                config,
                batch_size,
                stage_latency,
                act_mem.get(batch_size, [0.0] * config.pp),
                weight_mem if weight_mem is not None else [],
                fields.get("metadata"),
            )
            entry: LatencyMemData = result.para_dict[config]
            entry.latency[batch_size] = [float(seconds) for seconds in stage_latency]
    return result
