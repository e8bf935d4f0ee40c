"""A model that takes its profiled time and answers with placeholder text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidPlacementError, InvalidProfileError, InvalidRequestError
from alpa_serve.profiles.result import check_parallel_config
from alpa_serve.profiling import ProfilingResult
from alpa_serve.runtime.models.emulated_devices import EmulatedDevices
from alpa_serve.runtime.models.placeholder import pieces, placeholder_text
from alpa_serve.runtime.request import ALPASERVE_ENDPOINT, LONGEST_CONTEXT, ServeRequest, too_long
from alpa_serve.scheduling import ServingRules, check_rules, replica_timing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from alpa_serve.device_layout import Shape
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.runtime.models.emulated_devices import Service
    from alpa_serve.scheduling import ReplicaTiming

EXACT = ServingRules(stage_penalty=0.0, fixed_overhead_s=0.0, overhead_jitter=0.0)
"""Rules under which every stage takes exactly its profiled time: the runtime has overheads of its own."""


class EmulatedModel:
    """A replica that keeps the stages of its group busy for the profiled time, with no GPU.

    Begin and end of each request are those of the simulators' code, on the real clock. The answer to AlpaServe's
    ``POST /`` is ``{"model": ..., "latency_s": ..., "queue_s": ...}``, seconds from arrival at the group to the end and
    to the beginning, and the ``"idx"`` that was posted, if any. OpenAI's endpoints get placeholder text of
    ``output_tokens`` words, but of at most 4096 at a time; ``usage`` has the full number.

    Parameters
    ----------
    profiling_result : ProfilingResult
    parallel_config : ParallelConfig
    virtual_mesh : (int, int) or EmulatedDevices, optional
        The devices of its group; a shape (hosts, devices per host) makes new ones, as does None, as many as needed.
    rules : ServingRules
        By which its time is emulated. Token counts take time under ``service="tokens"`` only.
    enable_batching : bool
        Serve requests in batches of the profiled sizes, if there are several. The group then rejects requests whose
        deadline it cannot meet, unless ``rules.admission`` is ``"all"``.
    name : str, optional
        Name for messages; the profile's if left out.

    Raises
    ------
    InvalidProfileError
        If the profile lacks the config, batch size 1 or, under token service, prefill and decode times.
    InvalidPlacementError
        If the devices do not suffice, or serve by other rules.
    InvalidConfigError
        If the rules are none, or do not go with batches.
    """

    def __init__(
        self,
        profiling_result: ProfilingResult,
        parallel_config: ParallelConfig,
        virtual_mesh: EmulatedDevices | Shape | None = None,
        *,
        rules: ServingRules = EXACT,
        enable_batching: bool = True,
        name: str | None = None,
    ) -> None:
        if not isinstance(profiling_result, ProfilingResult):
            raise InvalidProfileError(f"an EmulatedModel needs a ProfilingResult, got {profiling_result!r}")
        self.profiling_result = profiling_result
        self.name = profiling_result.model_name if name is None else name
        self.parallel_config = check_parallel_config(parallel_config, f"replica of {self.name!r}")
        self.rules = check_rules(rules)
        # batch size 1 first: that it is there is checked
        self._timings = {1: replica_timing(profiling_result, self.parallel_config, rules)}
        if enable_batching:
            data = profiling_result.para_dict[self.parallel_config]
            sizes = data.prefill_decode if rules.service == "tokens" else data.latency
            self._timings |= {
                size: replica_timing(profiling_result, self.parallel_config, rules, size) for size in sizes
            }
        self._devices: EmulatedDevices | None = None
        self.place_on(virtual_mesh if isinstance(virtual_mesh, EmulatedDevices) else EmulatedDevices(virtual_mesh))

    def __repr__(self) -> str:
        return f"EmulatedModel({self.name!r}, {tuple(self.parallel_config)})"

    @property
    def devices(self) -> EmulatedDevices:
        """The devices that it runs on."""
        if self._devices is None:
            raise InvalidPlacementError(f"{self!r} is closed and runs on no devices")
        return self._devices

    def place_on(self, devices: EmulatedDevices) -> None:
        """Run on `devices` from now on, which the replicas of a group share.

        Raises
        ------
        InvalidPlacementError
            If they are too few, or serve by other rules; the replica then stays where it was.
        """
        if devices is self._devices:
            return
        devices.add_replica(self, self._timings, self.rules, self.parallel_config.num_devices)
        if self._devices is not None:
            self._devices.remove_replica(self)
        self._devices = devices

    def get_latency_dict(self) -> dict[int, list[float]]:
        """Return batch size -> seconds per stage, as profiled."""
        data = self.profiling_result.para_dict[self.parallel_config]
        return {size: self.profiling_result.stage_latency(self.parallel_config, size) for size in data.latency}

    def timing(self, rules: ServingRules) -> ReplicaTiming | None:
        """Return its times under `rules`, or None if it serves in batches, whose times depend on what waits."""
        if len(self._timings) > 1:
            return None
        return replica_timing(self.profiling_result, self.parallel_config, rules)

    async def handle_request(self, request: ServeRequest) -> dict[str, Any]:
        """Answer when the devices are done with the request.

        Raises
        ------
        InvalidRequestError
            If tokens take time and the request does not say how many it has, or has more than any model takes.
        RequestRejectedError
            If it was to be served in a batch and could not meet its deadline.
        """
        input_tokens, output_tokens = self._token_counts(request)
        devices = self.devices
        service = await devices.start(self, request, input_tokens, output_tokens)
        await devices.sleep_until(service.end)
        if request.endpoint == ALPASERVE_ENDPOINT:
            answer = {
                "model": request.model,
                "latency_s": service.end - service.arrival,
                "queue_s": service.begin - service.arrival,
            }
            return answer | {"idx": request["idx"]} if "idx" in request else answer
        return {
            "text": placeholder_text(output_tokens),
            **_ending(input_tokens, output_tokens),
        }

    async def stream_request(self, request: ServeRequest) -> AsyncIterator[str | dict[str, Any]]:
        """Yield the text as it would come: the first token after the prefill, the last at the end; then its usage.

        The share of the prefill is that of the profile's prefill and decode times for the request's own tokens, where
        it has them; else tokens are spread evenly. Tokens that come within 10 ms are one piece. Closing the iterator
        early frees nothing: the devices go on, as a GPU does with its batch.

        Raises
        ------
        InvalidRequestError, RequestRejectedError
            As ``handle_request`` does, before the first piece.
        """
        input_tokens, output_tokens = self._token_counts(request)
        devices = self.devices
        service = await devices.start(self, request, input_tokens, output_tokens)
        first_share = self._first_token_share(service, input_tokens, output_tokens)
        goes_on = False
        for due, tokens in pieces(service.begin, service.end, first_share, output_tokens):
            await devices.sleep_until(due)
            yield placeholder_text(tokens, goes_on=goes_on)
            goes_on = True
        await devices.sleep_until(service.end)
        yield {"text": "", **_ending(input_tokens, output_tokens)}

    async def warmup(self) -> float | None:
        """Serve a request of one token alone, and return its service time by the profiled one.

        Returns
        -------
        float or None
            1 under :data:`EXACT` rules; None if the profiled time is 0.
        """
        plain = replace(EXACT, service=self.rules.service)
        timing = replica_timing(self.profiling_result, self.parallel_config, plain)
        profiled_s = sum(latency + timing.token_seconds(1, 1) for latency in timing.latency)
        devices = self.devices
        service = await devices.start(self, ServeRequest({}, model=self.name), 1, 1)
        await devices.sleep_until(service.end)
        # the emulated time: that of the clock would have the lateness of a timer in it
        return (service.end - service.begin) / profiled_s if profiled_s > 0 else None

    async def close(self) -> None:
        """Leave its devices; requests that came before are served."""
        if self._devices is not None:
            self._devices.remove_replica(self)
            self._devices = None

    def _token_counts(self, request: ServeRequest) -> tuple[int, int]:
        """Return the tokens of the prompt and of the answer, checked where they take time."""
        counts = {"input_tokens": request.input_tokens, "output_tokens": request.output_tokens}
        if self.rules.service == "tokens":
            for key, count in counts.items():
                if count is None:
                    raise InvalidRequestError(
                        f'model {request.model!r} takes its time by tokens: the request needs "{key}", a whole number'
                    )
            if sum(count or 0 for count in counts.values()) > LONGEST_CONTEXT:
                raise InvalidRequestError(
                    too_long(request.model, request.input_tokens or 0, request.output_tokens or 0)
                )
        return request.input_tokens or 0, 1 if request.output_tokens is None else request.output_tokens

    def _first_token_share(self, service: Service, input_tokens: int, output_tokens: int) -> float:
        data = self.profiling_result.para_dict[self.parallel_config]
        known = data.prefill_decode.get(service.batch_size)
        if known is not None:
            whole_s = known.service_s(input_tokens, output_tokens)
            if whole_s > 0:
                return known.first_token_s(input_tokens) / whole_s
        return 1 / max(output_tokens, 1)


def _ending(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """Return what follows the text of an answer."""
    usage = {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
    return {"usage": usage, "finish_reason": "length"}
