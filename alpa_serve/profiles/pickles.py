"""Reading AlpaServe's pickled profiles without running anything that is in the file.

Profiles are rebuilt from the stand-ins of :mod:`alpa_serve.safe_pickle`, every figure checked.
"""

from __future__ import annotations

import math
import pickle
import reprlib
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiles.result import ORIGIN_FIELDS, ProfilingResult, check_parallel_config
from alpa_serve.safe_pickle import OBJECT_BASE, TUPLE_BASE, NumberList, SafeUnpickler
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO


class _ProfileUnpickler(SafeUnpickler):
    """Admits profiles too, as stand-ins."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, "profile", NumberList)
        # of this load alone, like every stand-in
        self.result_class: type = type("ProfilingResult", (), {})
        self.data_class: type = type("LatencyMemData", (), {})
        config_class: type = type("ParallelConfig", (tuple,), {"__new__": _new_config})
        bases = {self.result_class: OBJECT_BASE, self.data_class: OBJECT_BASE, config_class: TUPLE_BASE}

        def reconstruct(cls: type, base: str, state: Any) -> Any:
            # how protocols 0 and 1 make an object
            if bases.get(cls) != base:
                raise pickle.UnpicklingError("it makes an object that is no part of a profile")
            return _new_config(cls, *state) if base == TUPLE_BASE else object.__new__(cls)

        for stand_in in bases:
            self.admit("alpa_serve.profiling", stand_in.__name__, stand_in)
        for module in ("copyreg", "copy_reg"):
            self.admit(module, "_reconstructor", reconstruct)


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
        return type(value) in (list, tuple, set, NumberList) and all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, bytes)
