"""Reading AlpaServe's pickled profiles without running anything that is in the file.

Whatever a pickle names is answered by a stand-in made for this one load: classes of this module's own that keep what
they are given, never the classes or functions named. Profiles are rebuilt from the stand-ins, every figure checked.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles.result import ProfilingResult, check_parallel_config
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    import io
    from pathlib import Path

_NUMBER_CODES = {"b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}


class _NumberType:
    """Stands in for a NumPy dtype: one of the plain number types, or refused."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if code not in _NUMBER_CODES:
            raise pickle.UnpicklingError(f"it holds NumPy data of type {code!r}, which is no number")
        self.dtype = np.dtype(str(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = state[1]
        if byte_order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(byte_order)

    def numbers(self, raw: object) -> list[Any]:
        """Return the numbers in `raw` bytes as Python numbers."""
        if not isinstance(self, _NumberType) or not isinstance(raw, (bytes, bytearray)):
            raise pickle.UnpicklingError("it holds NumPy data that is not plain numbers")
        listed: list[Any] = np.frombuffer(raw, dtype=self.dtype).tolist()
        return listed


class _NumberArray(list[Any]):
    """Stands in for a NumPy array: the flat list of its numbers."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, _shape, number_type, _fortran, raw = state
        self[:] = _NumberType.numbers(number_type, raw)


def _make_scalar(number_type: _NumberType, raw: object) -> Any:
    (number,) = _NumberType.numbers(number_type, raw)
    return number


def _make_array(raw: object, number_type: _NumberType, shape: object, order: object) -> list[Any]:
    return _NumberType.numbers(number_type, bytes(raw) if isinstance(raw, pickle.PickleBuffer) else raw)


def _encode_latin1(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it holds text in an encoding that no profile uses")
    return text.encode("latin1")


class _ProfileUnpickler(pickle.Unpickler):
    """Admits profiles, plain containers and numbers, as stand-ins."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file)
        # classes and functions of this load alone: what a crafted file does to them reaches nothing else
        self.result_class: type = type("ProfilingResult", (), {})
        self.data_class: type = type("LatencyMemData", (), {})
        config_class: type = type("ParallelConfig", (tuple,), {"__new__": _new_config})
        bases = {self.result_class: object, self.data_class: object, config_class: tuple}

        def reconstruct(cls: type, base: type, state: Any) -> Any:
            # how protocols 0 and 1 make an object
            if bases.get(cls) is not base:
                raise pickle.UnpicklingError("it makes an object that is no part of a profile")
            return tuple.__new__(cls, state) if base is tuple else object.__new__(cls)

        self._admitted: dict[tuple[str, str], Any] = {
            ("alpa_serve.profiling", "ProfilingResult"): self.result_class,
            ("alpa_serve.profiling", "LatencyMemData"): self.data_class,
            ("alpa_serve.profiling", "ParallelConfig"): config_class,
            ("collections", "OrderedDict"): OrderedDict,
            ("numpy", "dtype"): type("dtype", (_NumberType,), {}),
            ("numpy", "ndarray"): type("ndarray", (_NumberArray,), {}),
            ("_codecs", "encode"): partial(_encode_latin1),
        }
        for module in ("builtins", "__builtin__"):
            self._admitted |= {(module, kind.__name__): kind for kind in (dict, list, tuple, set, object)}
        for module in ("copyreg", "copy_reg"):
            self._admitted[module, "_reconstructor"] = reconstruct
        for module in ("numpy.core", "numpy._core"):
            self._admitted[f"{module}.multiarray", "scalar"] = partial(_make_scalar)
            self._admitted[f"{module}.multiarray", "_reconstruct"] = lambda *_: _NumberArray()  # BUILD fills it
            self._admitted[f"{module}.numeric", "_frombuffer"] = partial(_make_array)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a profile") from None


def _new_config(cls: type, dp: object, op: object, pp: object) -> tuple[object, ...]:
    return tuple.__new__(cls, (dp, op, pp))


def read_profiles(path: Path) -> dict[str, ProfilingResult]:
    """Read a pickled dict of model name to ProfilingResult, as AlpaServe writes it.

    Raises
    ------
    InvalidProfileError
        Naming the file and what in it is no profile. Nothing in the file is run.
    FileNotFoundError
        If the file does not exist.
    """
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
        if not isinstance(name, str) or type(stand_in) is not unpickler.result_class:
            raise InvalidProfileError(f"{path}: entry {name!r} is not a profile")
        try:
            results[name] = _rebuild_result(stand_in, unpickler.data_class, f"profile {name!r}")
        except InvalidProfileError as error:
            raise InvalidProfileError(f"{path}: {error}") from None
    return results


def _rebuild_result(stand_in: Any, data_class: type, where: str) -> ProfilingResult:
    state = vars(stand_in)
    para_dict = state.get("para_dict")
    if not isinstance(state.get("model_name"), str) or not isinstance(para_dict, dict):
        raise InvalidProfileError(f"{where}: needs model_name and para_dict, has {sorted(map(str, state))}")
    result = ProfilingResult(state["model_name"])
    for name in ("preprocess_cpu", "postprocess_cpu"):
        seconds = check_real(state.get(name, 0.0), f"{where}: {name}", minimum=0.0, error=InvalidProfileError)
        setattr(result, name, seconds)
    for key, data in para_dict.items():
        config = check_parallel_config(key, where)
        _add_config(result, config, data, data_class, f"{where}, config {tuple(config)}")
    return result


def _add_config(result: ProfilingResult, config: Any, data: Any, data_class: type, where: str) -> None:
    fields = vars(data) if type(data) is data_class else {}
    latency, act_mem, weight_mem = (fields.get(name) for name in ("latency", "act_mem", "weight_mem"))
    if not isinstance(latency, dict) or not isinstance(act_mem, dict) or not latency:
        raise InvalidProfileError(f"{where}: needs latency, act_mem and weight_mem")
    metadata = fields.get("metadata")
    if not _is_plain(metadata):
        raise InvalidProfileError(f"{where}: metadata may hold plain containers, text and numbers only")
    for key, stage_latency in latency.items():
        batch_size = check_int(key, f"{where}: batch size", minimum=1, error=InvalidProfileError)
        at_size = f"{where}, batch size {batch_size}"
        result.add_result(
            config,
            batch_size,
            _figures(stage_latency, f"{at_size}: latency"),
            _activations(act_mem.get(key), config.pp, f"{at_size}: act_mem"),
            _figures(weight_mem, f"{at_size}: weight_mem"),
            metadata,
        )


def _figures(listed: Any, what: str) -> list[float]:
    if not isinstance(listed, (list, tuple)):
        raise InvalidProfileError(f"{what} must list a figure per stage")
    return [check_real(figure, what, minimum=0.0, error=InvalidProfileError) for figure in listed]


def _activations(listed: Any, num_stages: int, what: str) -> list[float]:
    """Return activation bytes per stage; NaN where AlpaServe left a word, such as "TODO", or nothing."""
    if listed is None:
        return [math.nan] * num_stages
    if not isinstance(listed, (list, tuple)):
        raise InvalidProfileError(f"{what} must list a figure per stage")
    measured = iter(_figures([figure for figure in listed if not isinstance(figure, str)], what))
    return [math.nan if isinstance(figure, str) else next(measured) for figure in listed]


def _is_plain(value: Any) -> bool:
    """Tell whether `value` is made of plain containers, text and numbers."""
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return type(value) in (list, tuple, set, _NumberArray) and all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, complex, str, bytes)
