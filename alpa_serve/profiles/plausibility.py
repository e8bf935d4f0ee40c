"""What is implausible in a profile: figures that contradict each other, or that a wrong unit would explain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Literal

from alpa_serve.errors import InvalidConfigError, InvalidProfileError
from alpa_serve.profiles.result import (
    LARGEST_DEVICE,
    LatencyMemData,
    ParallelConfig,
    ProfilingResult,
    check_parallel_config,
)
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Iterator

Severity = Literal["error", "warning", "note"]

SLOWEST_BYTES_PER_S = 5e8
"""Weight bytes / latency of a request below which the unit is in doubt: each token reads them at over 1e11 bytes/s."""

FASTEST_BYTES_PER_S = 1e14
"""Weight bytes / (latency * devices) above which it is, too: no device reads its memory at over 1e13 bytes/s."""

SMALLEST_WEIGHTS = 1 << 20
"""Weight bytes on all devices below which the unit is in doubt."""

LONGEST_ANSWER = 10_000
"""Output tokens of a profiled request above which prefill and decode are taken to contradict its latency."""

_TOLERANCE = 0.01  # figures that should be alike are measured apart
_PIPELINE_GAIN = 0.2  # a pipeline gives a request the same work to do, so its latency may fall by noise alone
_SAME_REQUEST = 2.0


@dataclass(frozen=True)
class Finding:
    """Something implausible in a profile.

    Attributes
    ----------
    severity : "error", "warning" or "note"
        No simulation can use the figures; they are probably wrong; they may well be right, but one should know.
    config : ParallelConfig or None
        Where; None for the whole profile.
    batch_size : int or None
        None for all batch sizes.
    message : str
    """

    severity: Severity
    config: ParallelConfig | None
    batch_size: int | None
    message: str

    def __str__(self) -> str:
        where = "" if self.config is None else f"config {tuple(self.config)}"
        where += "" if self.batch_size is None else f", batch size {self.batch_size}"
        return f"{self.severity}: {f'{where}: ' if where else ''}{self.message}"


def validate(
    result: ProfilingResult, *, device_memory: float | None = None, devices_per_node: int = 8
) -> list[Finding]:
    """Return what is implausible in a profile, errors first, then warnings, then notes; nothing is changed.

    Errors are missing stages, wrong numbers of stages, figures that are none, and stages that take no time; further
    checks go over the other configs only. Warnings are weights or KV cache that do not shrink with parallelism, latency
    that falls with the batch size or a lot with the number of stages, prefill and decode times that contradict the
    latency, and figures that look like another unit (ms, GiB). Notes are latency that grows with the tensor-parallel
    degree within a node, KV cache that stays the same (heads are not split further), and memory beyond a device.

    Parameters
    ----------
    result : ProfilingResult
    device_memory : float or None
        Bytes > 0 of a device; None leaves that check out.
    devices_per_node : int
        Devices >= 1 within which tensor parallelism is expected to pay.

    Raises
    ------
    InvalidConfigError
        If an argument is out of its range.
    """
    if not isinstance(result, ProfilingResult):
        raise InvalidConfigError(f"validate takes a ProfilingResult, got {result!r}")
    check_int(devices_per_node, "devices_per_node", minimum=1)
    if device_memory is not None:
        check_real(device_memory, "device_memory", minimum=0.0, exclusive=True)
    findings = []
    sound: dict[ParallelConfig, LatencyMemData] = {}
    if not result.para_dict:
        findings.append(Finding("error", None, None, "no config is profiled"))
    for config, data in result.para_dict.items():
        broken = list(_malformed(config, data))
        findings += broken
        if not broken:
            sound[ParallelConfig(*config)] = data
    for config, data in sound.items():
        findings += _of_config(config, data)
        if device_memory is not None:
            findings += _beyond_memory(config, data, device_memory)
    findings += _of_degrees(sound, devices_per_node)
    findings += _of_tokens(sound)
    findings += _of_all(sound)
    order: list[Severity] = ["error", "warning", "note"]
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _malformed(config: object, data: LatencyMemData) -> Iterator[Finding]:
    """Find what a measurement could not even be added with, one finding a batch size, and times of 0."""
    try:
        checked = check_parallel_config(config, "profile")
    except InvalidProfileError as error:
        yield Finding("error", None, None, str(error))
        return
    if not data.latency:
        yield Finding("error", checked, None, "no batch size is profiled")
    for batch_size, latency in data.latency.items():
        try:
            ProfilingResult("").add_result(
                checked,
                batch_size,
                latency,
                data.act_mem.get(batch_size, []),
                data.weight_mem,
                prefill_decode=data.prefill_decode.get(batch_size),
                kv_bytes_per_token=data.kv_bytes_per_token,
            )
        except InvalidProfileError as error:
            # the message begins with the profile, its config and the batch size
            message = str(error).partition(f"{tuple(checked)}")[2].lstrip(":, ") or str(error)
            yield Finding("error", checked, batch_size, message)
            continue
        for stage, seconds in enumerate(latency):
            if not seconds:
                yield Finding("error", checked, batch_size, f"stage {stage} takes no time")


def _of_config(config: ParallelConfig, data: LatencyMemData) -> Iterator[Finding]:
    weights = sum(data.weight_mem) * config.op * config.dp
    if 1 not in data.latency:
        there = ", ".join(map(str, sorted(data.latency)))
        yield Finding("warning", config, None, f"batch size 1, which searches go by, is not profiled; {there} are")
    if weights < SMALLEST_WEIGHTS:
        yield Finding("warning", config, None, f"weights of {weights:g} bytes in all: are they given in GiB or MiB?")
    if max(data.weight_mem) > LARGEST_DEVICE:
        yield Finding(
            "warning",
            config,
            None,
            f"weights of {max(data.weight_mem):.3g} bytes are more than any device has: is the unit another?",
        )
    for batch_size, latency in sorted(data.latency.items()):
        speed = weights / sum(latency)
        if weights >= SMALLEST_WEIGHTS and speed * batch_size < SLOWEST_BYTES_PER_S:
            yield Finding(
                "warning",
                config,
                batch_size,
                f"{sum(latency):g} s a request is long for {weights:.3g} bytes of weights: is it in milliseconds?",
            )
        if speed > FASTEST_BYTES_PER_S * config.op * config.dp:
            yield Finding(
                "warning",
                config,
                batch_size,
                f"{sum(latency):g} s is too short to read {weights:.3g} bytes of weights",
            )
    for smaller, larger in pairwise(sorted(data.latency)):
        before, after = sum(data.latency[smaller]), sum(data.latency[larger])
        if after < before * (1 - _TOLERANCE):
            yield Finding(
                "warning", config, larger, f"takes {after:g} s, less than batch size {smaller} with {before:g} s"
            )


def _beyond_memory(config: ParallelConfig, data: LatencyMemData, device_memory: float) -> Iterator[Finding]:
    for batch_size, activations in sorted(data.act_mem.items()):
        used = max(
            weights + (0.0 if math.isnan(extra) else extra)
            for weights, extra in zip(data.weight_mem, activations, strict=True)
        )
        if used > device_memory:
            yield Finding(
                "note",
                config,
                batch_size,
                f"needs {used:.4g} bytes on a device, of which there are {device_memory:.4g}",
            )


def _of_degrees(sound: dict[ParallelConfig, LatencyMemData], devices_per_node: int) -> Iterator[Finding]:
    """Compare each config with the next smaller one of the same pp, and of the same op."""
    for config, data in sorted(sound.items()):
        for degree in ("op", "pp"):
            smaller = [
                other
                for other in sound
                if getattr(other, degree) < getattr(config, degree)
                and other._replace(**{degree: 1}) == config._replace(**{degree: 1})
            ]
            if smaller:
                nearest = max(smaller, key=lambda other: int(getattr(other, degree)))
                yield from _more_devices(config, data, nearest, sound[nearest], devices_per_node)


def _more_devices(
    config: ParallelConfig, data: LatencyMemData, smaller: ParallelConfig, base: LatencyMemData, devices_per_node: int
) -> Iterator[Finding]:
    than = f"config {tuple(smaller)}"
    now, before = max(data.weight_mem), max(base.weight_mem)
    if now >= before > 0:
        yield Finding("warning", config, None, f"weights on a device, {now:.4g} bytes, are no less than with {than}")
    if data.kv_bytes_per_token is not None and base.kv_bytes_per_token is not None:
        now, before = max(data.kv_bytes_per_token), max(base.kv_bytes_per_token)
        if now > before * (1 + _TOLERANCE):
            yield Finding(
                "warning", config, None, f"KV cache, {now:g} bytes a token and device, is more than with {than}"
            )
        elif now >= before > 0:
            yield Finding(
                "note", config, None, f"KV cache, {now:g} bytes a token and device, is no less than with {than}"
            )
    for batch_size in sorted(data.latency.keys() & base.latency.keys()):
        now, before = sum(data.latency[batch_size]), sum(base.latency[batch_size])
        if config.op > smaller.op and config.op <= devices_per_node and now > before:
            yield Finding(
                "note", config, batch_size, f"takes {now:g} s, longer than {before:g} s with {than} within a node"
            )
        if config.pp > smaller.pp and now < before * (1 - _PIPELINE_GAIN):
            yield Finding(
                "warning",
                config,
                batch_size,
                f"takes {now:g} s, all stages together, against {before:g} s with {than}: a pipeline does not quicken "
                "a request",
            )


def _of_tokens(sound: dict[ParallelConfig, LatencyMemData]) -> Iterator[Finding]:
    """Compare the output tokens at which prefill and decode give the latency: there is one kind of request."""
    tokens: dict[tuple[ParallelConfig, int], float] = {}
    for config, data in sound.items():
        for batch_size, figures in data.prefill_decode.items():
            total = sum(data.latency[batch_size]) if batch_size in data.latency else math.nan
            if figures.decode_s_per_token:
                tokens[config, batch_size] = (total - figures.prefill_s) / figures.decode_s_per_token
            elif abs(total - figures.prefill_s) > _TOLERANCE * total:
                yield Finding(
                    "warning",
                    config,
                    batch_size,
                    f"takes {total:g} s, which a prefill of {figures.prefill_s:g} s without decode time contradicts",
                )
    if not tokens:
        return
    usual = median(tokens.values())
    for (config, batch_size), count in tokens.items():
        if not 0.5 <= count <= LONGEST_ANSWER:
            problem = f"prefill and decode time give its latency at {count:.4g} output tokens, which cannot be"
        elif not usual / _SAME_REQUEST <= count <= usual * _SAME_REQUEST:
            problem = (
                f"prefill and decode time give its latency at {count:.4g} output tokens, but at {usual:.4g} elsewhere"
            )
        else:
            continue
        yield Finding("warning", config, batch_size, problem)


def _of_all(sound: dict[ParallelConfig, LatencyMemData]) -> Iterator[Finding]:
    """Find configs that lack what others have."""
    with_kv = [config for config, data in sound.items() if data.kv_bytes_per_token is not None]
    if with_kv:
        for config in sound:
            if config not in with_kv:
                yield Finding("warning", config, None, "no KV cache per token, which other configs have")
    with_tokens = [config for config, data in sound.items() if data.prefill_decode]
    if with_tokens:
        for config, data in sound.items():
            for batch_size in sorted(data.latency.keys() - data.prefill_decode.keys()):
                yield Finding("warning", config, batch_size, "no prefill and decode time, which others have")
