"""Reading AlpaServe's pickled profiles without running anything that is in the file.

Whatever a pickle names is answered by a stand-in made for this one load: classes of this module's own that keep what
they are given, never the classes or functions named. Profiles are rebuilt from the stand-ins, every figure checked.
"""

from __future__ import annotations

import math
import pickle
import reprlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles.result import ORIGIN_FIELDS, PrefillDecode, ProfilingResult, check_parallel_config
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    import io
    from collections.abc import Callable
    from pathlib import Path

_MAX_NESTING = 20
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
    """Stands in for a NumPy array: its numbers as nested lists."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, number_type, fortran, raw = state
        self[:] = _shaped(_NumberType.numbers(number_type, raw), shape, "F" if fortran else "C")


def _make_scalar(number_type: _NumberType, raw: object) -> Any:
    (number,) = _NumberType.numbers(number_type, raw)
    return number


def _make_array(raw: object, number_type: _NumberType, shape: object, order: object) -> list[Any]:
    numbers = _NumberType.numbers(number_type, bytes(raw) if isinstance(raw, pickle.PickleBuffer) else raw)
    return _shaped(numbers, shape, order)


def _shaped(numbers: list[Any], shape: Any, order: Any) -> list[Any]:
    """Return a flat list of numbers as nested lists of the array's shape."""
    if not isinstance(shape, tuple) or not shape:
        raise pickle.UnpicklingError("it holds a NumPy array without dimensions")
    listed: list[Any] = np.array(numbers).reshape(shape, order=order).tolist()
    return listed


def _encode_latin1(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it holds text in an encoding that no profile uses")
    return text.encode("latin1")


def _make_bytes(*arguments: object) -> bytes:
    # how protocols 0 to 2 write empty bytes
    if arguments:
        raise pickle.UnpicklingError("it makes bytes in a way that no profile uses")
    return b""


def _make_set(members: object) -> set[Any]:
    if not isinstance(members, list) or any(isinstance(member, (tuple, frozenset)) for member in members):
        raise pickle.UnpicklingError("it holds a set of other than numbers and text")
    return set(members)


class _ProfileUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc,unused-ignore]
    """Admits profiles, plain containers and numbers, as stand-ins.

    It is the unpickler written in Python, so that tuples can be kept from nesting: a tuple that is a key is hashed,
    and the interpreter hashes without a limit to the depth.
    """

    dispatch = pickle._Unpickler.dispatch.copy()  # type: ignore[attr-defined,unused-ignore]

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file)
        self._depths: dict[int, int] = {}
        self._kept: list[object] = []
        # classes and functions of this load alone: what a crafted file does to them reaches nothing else (functions,
        # not functools.partial, whose state a pickle could replace)
        self.result_class: type = type("ProfilingResult", (), {})
        self.data_class: type = type("LatencyMemData", (), {})
        config_class: type = type("ParallelConfig", (tuple,), {"__new__": _new_config})
        # bases are named, never called
        object_base, tuple_base = "object", "tuple"
        bases = {self.result_class: object_base, self.data_class: object_base, config_class: tuple_base}

        def reconstruct(cls: type, base: str, state: Any) -> Any:
            # how protocols 0 and 1 make an object
            if bases.get(cls) != base:
                raise pickle.UnpicklingError("it makes an object that is no part of a profile")
            return _new_config(cls, *state) if base == tuple_base else object.__new__(cls)

        self._admitted: dict[tuple[str, str], Any] = {
            ("alpa_serve.profiling", "ProfilingResult"): self.result_class,
            ("alpa_serve.profiling", "LatencyMemData"): self.data_class,
            ("alpa_serve.profiling", "ParallelConfig"): config_class,
            ("collections", "OrderedDict"): OrderedDict,
            ("numpy", "dtype"): type("dtype", (_NumberType,), {}),
            ("numpy", "ndarray"): type("ndarray", (_NumberArray,), {}),
            ("_codecs", "encode"): lambda text, encoding: _encode_latin1(text, encoding),
        }
        for module in ("builtins", "__builtin__"):
            self._admitted |= {
                (module, "set"): lambda members: _make_set(members),
                (module, "bytes"): lambda *arguments: _make_bytes(*arguments),
                (module, "object"): object_base,
                (module, "tuple"): tuple_base,
            }
        for module in ("copyreg", "copy_reg"):
            self._admitted[module, "_reconstructor"] = reconstruct
        for module in ("numpy.core", "numpy._core"):
            self._admitted[f"{module}.multiarray", "scalar"] = lambda *arguments: _make_scalar(*arguments)
            self._admitted[f"{module}.multiarray", "_reconstruct"] = lambda *_: _NumberArray()  # BUILD fills it
            self._admitted[f"{module}.numeric", "_frombuffer"] = lambda *arguments: _make_array(*arguments)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a profile") from None

    def _build_hashable(self, build: Callable[[Any], None]) -> None:
        """Build a hashable container and refuse it if it nests too deeply."""
        build(self)
        made = self.stack[-1]  # type: ignore[attr-defined,unused-ignore]
        if isinstance(made, (tuple, frozenset)):
            depth = 1 + max((self._depths.get(id(member), 0) for member in made), default=0)
            if depth > _MAX_NESTING:
                raise pickle.UnpicklingError("it nests tuples more deeply than any profile")
            self._depths[id(made)] = depth
            # kept alive, or another object could come to have its id
            self._kept.append(made)


def _watched(build: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda unpickler: unpickler._build_hashable(build)


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET):
    _ProfileUnpickler.dispatch[_opcode[0]] = _watched(_ProfileUnpickler.dispatch[_opcode[0]])


def _new_config(cls: type, *degrees: object) -> tuple[object, ...]:
    if len(degrees) != 3 or any(isinstance(degree, (tuple, frozenset)) for degree in degrees):
        raise pickle.UnpicklingError(f"a parallel config is three numbers, it has {len(degrees)} parts")
    return tuple.__new__(cls, degrees)


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
            return _rebuild(loaded, unpickler)
        except InvalidProfileError as error:
            raise InvalidProfileError(f"{path}: {error}") from None
        except Exception as error:
            # a damaged or crafted pickle can make the machinery fail in any way
            raise InvalidProfileError(f"{path}: not a file of profiles: {error}") from error


def _rebuild(loaded: Any, unpickler: _ProfileUnpickler) -> dict[str, ProfilingResult]:
    if not isinstance(loaded, dict):
        raise InvalidProfileError(f"expected a dict of model name to profile, found a {type(loaded).__name__}")
    results = {}
    for name, stand_in in loaded.items():
        if not isinstance(name, str) or type(stand_in) is not unpickler.result_class:
            raise InvalidProfileError(f"entry {reprlib.repr(name)} is not a profile")
        results[name] = _rebuild_result(stand_in, unpickler.data_class, f"profile {name!r}")
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
    for name in ORIGIN_FIELDS:
        text = state.get(name, "")
        if not isinstance(text, str):
            raise InvalidProfileError(f"{where}: {name} must be text")
        setattr(result, name, text)
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
    # AlpaServe writes none
    prefill_decode = fields.get("prefill_decode", {})
    if not isinstance(prefill_decode, dict) or not prefill_decode.keys() <= latency.keys():
        raise InvalidProfileError(f"{where}: prefill_decode must be a dict of batch sizes that latency has")
    per_token = fields.get("kv_bytes_per_token")
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
            prefill_decode=_prefill_decode(prefill_decode.get(key), f"{at_size}: prefill_decode"),
            kv_bytes_per_token=None if per_token is None else _figures(per_token, f"{where}: kv_bytes_per_token"),
        )


def _prefill_decode(figures: Any, what: str) -> PrefillDecode | None:
    if figures is None:
        return None
    if not isinstance(figures, tuple) or len(figures) != 3:
        raise InvalidProfileError(f"{what} must be (prefill_s, decode_s_per_token, prompt_tokens)")
    try:
        return PrefillDecode(*figures)
    except InvalidProfileError as error:
        raise InvalidProfileError(f"{what}: {error}") from None


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
    return value is None or type(value) in (bool, int, float, str, bytes)
