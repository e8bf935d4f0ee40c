"""A request as an object, and the view that makes such objects of a workload's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from alpa_serve.simulator.columns import TOKEN_COLUMNS, UNKNOWN_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.simulator.columnar_workload import Workload


@dataclass(eq=False)
class Request:
    """One request.

    Attributes
    ----------
    model_name : str
    data : object
        What is asked, e.g. the prompt.
    slo : float or None
        Latency objective in seconds from arrival; None for none.
    idx : int
        Its position in the workload.
    time_stamp : dict of str to float
        Seconds at which the request passed the stations that a debug run notes; empty otherwise.
    submit_time : float or None
        Seconds; set when it is sent.
    input_tokens, output_tokens : int or None
        Length of the prompt and of the answer; None where it is not known. Given by keyword.
    """

    model_name: str
    data: Any
    slo: float | None
    idx: int
    time_stamp: dict[str, float]
    submit_time: float | None = None
    input_tokens: int | None = field(default=None, kw_only=True)
    output_tokens: int | None = field(default=None, kw_only=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Request):
            return NotImplemented
        return (self._fields(), self._tokens()) == (other._fields(), other._tokens())

    __hash__ = None  # type: ignore[assignment]

    def _fields(self) -> tuple[Any, ...]:
        return self.model_name, self.data, self.slo, self.idx, self.time_stamp, self.submit_time

    def _tokens(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in TOKEN_COLUMNS}


class _WorkloadRequest(Request):
    """A request that looks into a workload: setting `slo`, `data`, `submit_time` or tokens changes it there."""

    _workload: Workload

    def __init__(self, workload: Workload, idx: int) -> None:
        slo = float(workload.slos[idx])
        super().__init__(
            workload.model_names[workload.model_ids[idx]],
            None if workload.data is None else workload.data[idx],
            None if np.isinf(slo) else slo,
            idx,
            {},
            None if np.isnan(workload.submit_times[idx]) else float(workload.submit_times[idx]),
            input_tokens=_known(workload.input_tokens, idx),
            output_tokens=_known(workload.output_tokens, idx),
        )
        self.__dict__["_workload"] = workload

    def __setattr__(self, name: str, value: Any) -> None:
        if "_workload" in self.__dict__:
            self._workload.set_request_field(self.idx, name, value)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[type[Request], tuple[Any, ...], dict[str, int | None]]:
        # a copy stands alone, without the workload
        return Request, self._fields(), self._tokens()


def _known(tokens: NDArray[np.int64] | None, idx: int) -> int | None:
    return None if tokens is None or tokens[idx] == UNKNOWN_TOKENS else int(tokens[idx])


class RequestView(Sequence[Request]):
    """The requests of a workload as objects, made when somebody looks."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def __len__(self) -> int:
        return len(self._workload)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (RequestView, list)):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, key: int) -> Request: ...

    @overload
    def __getitem__(self, key: slice) -> list[Request]: ...

    def __getitem__(self, key: int | slice) -> Request | list[Request]:
        positions = range(len(self))[key]
        if isinstance(positions, range):
            return [_WorkloadRequest(self._workload, idx) for idx in positions]
        return _WorkloadRequest(self._workload, positions)
