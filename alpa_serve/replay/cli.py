"""The command line of a replay: ``python -m alpa_serve.replay PLACEMENT TRACE --url URL``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.api_key import API_KEY_VARIABLE, read_api_key
from alpa_serve.errors import AlpaServeError, InvalidConfigError, ReplayInterrupted
from alpa_serve.files import replacing
from alpa_serve.placement import ModelData
from alpa_serve.placement_json import read_placement
from alpa_serve.profiles.named import NAMED_PROFILE, load_profiles
from alpa_serve.replay.endpoint import Endpoint
from alpa_serve.replay.output import format_replay, replay_json
from alpa_serve.replay.progress_bar import replay_progress_bar
from alpa_serve.replay.traffic import Traffic, model_slos, named_numbers
from alpa_serve.replay.workers import replay_workload
from alpa_serve.scheduling.rules import RULES_BY_NAME
from alpa_serve.simulator import simulate
from alpa_serve.simulator.stats import compute_stats
from alpa_serve.trace.llm import BUILT_IN_TRACES, POISSON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alpa_serve.placement_json import NamedPlacement
    from alpa_serve.profiles.result import ProfilingResult
    from alpa_serve.replay.results import ReplayResult
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator import SimulationResult
    from alpa_serve.simulator.workload import Workload

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""

LATE_S = 0.01
"""Lateness at the 99th percentile from which on the load is not what was asked for, in seconds."""

PROCESS_RATE = 1000.0
"""Requests per second that one process sends on time, with 2,000 in flight: 6 ms late at the 99th percentile. To a
server that answers at once it is 3,000 and more, but how long answers take is not known beforehand."""


def main(argv: Sequence[str] | None = None) -> int:
    """Replay and print what was served.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if left out.

    Returns
    -------
    int
        0 if every request was answered, 1 if some failed or were not, 2 if the input is bad or the server does not
        have the models, 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    try:
        return _replay(options)
    except (AlpaServeError, OSError) as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("stopped; nothing was sent yet")
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alpa_serve.replay",
        description="Send a trace to a running server, each request when it is due, and report what it served in time.",
    )
    parser.add_argument("placement", type=Path, metavar="PLACEMENT", help="JSON file that names the models")
    parser.add_argument(
        "trace",
        metavar="TRACE",
        help=f"{', '.join(BUILT_IN_TRACES)}, {POISSON}, a file of a published form, or what each model gets: "
        "gamma:rate=2,cv=4, poisson:rate=2 or uniform:rate=2 (requests/s)",
    )
    server = parser.add_argument_group("server")
    server.add_argument("--url", required=True, help="http://host:port/, with the root path if there is one")
    server.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"file of the bearer token (default: ${API_KEY_VARIABLE})"
    )
    server.add_argument("--ca-file", type=Path, metavar="FILE", help="certificates to trust in place of the system's")
    server.add_argument("--insecure", action="store_true", help="take any certificate")
    _traffic_flags(parser.add_argument_group("requests"))
    sending = parser.add_argument_group("sending")
    sending.add_argument("--num-processes", default="1", metavar="N|auto", help="(default: %(default)s)")
    sending.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for an answer (default: 600)")
    sending.add_argument(
        "--retries", type=int, default=0, help="after a connection that was refused or reset (default: %(default)s)"
    )
    sending.add_argument(
        "--from-schedule",
        action="store_true",
        help="latency counts from when a request was due, not from when it was sent",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--warmup", type=float, default=0.0, help="seconds cut from both ends (default: %(default)g)")
    output.add_argument(
        "--simulate", action="store_true", help="compare with a simulation; needs a --profile of every model"
    )
    output.add_argument(
        "--rules", choices=list(RULES_BY_NAME), default="runtime", help="of the simulation (default: %(default)s)"
    )
    output.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    output.add_argument("--csv", type=Path, metavar="FILE", help="write a row per request to this file")
    output.add_argument("--quiet", action="store_true", help="no progress bar and no notes")
    return parser


def _traffic_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--duration", type=float, help="seconds, of gamma:, poisson: and uniform:")
    group.add_argument("--start", metavar="MOMENT", help="of a trace: seconds on its axis, or a date")
    group.add_argument("--end", metavar="MOMENT", help="up to, and without")
    group.add_argument("--head", type=int, metavar="N", help="the first N requests only")
    group.add_argument(
        "--assign", default="uniform", metavar="uniform|weights|column", help="models of a trace's requests"
    )
    group.add_argument("--weights", nargs="+", metavar="NAME=WEIGHT", help="with --assign weights")
    group.add_argument("--rate-scale", type=float, default=1.0, help="factor on the requests (default: %(default)g)")
    group.add_argument(
        "--time-scale", type=float, default=1.0, help="factor on the time that they take to come (default: %(default)g)"
    )
    group.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    group.add_argument(
        "--slo", action="append", default=[], metavar="[NAME=]SECONDS", help="for all models, or for one; repeatable"
    )
    group.add_argument(
        "--slo-scale", type=float, help="SLO = this x a request's time alone, on the fewest devices of the profile"
    )
    group.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar=NAMED_PROFILE,
        help="profile of a model, such as m0=llama-2-7b or m0=alpa/bert-1.3b@profiles.pkl; repeatable",
    )


def _replay(options: argparse.Namespace) -> int:
    named = read_placement(options.placement)
    endpoint = Endpoint(
        url=options.url, api_key=read_api_key(options.api_key_file), ca_file=options.ca_file, insecure=options.insecure
    )
    profiles = load_profiles(options.profile, named.model_names)
    workload = _traffic(options).workload(model_slos(named.model_names, options.slo, options.slo_scale, profiles))
    num_processes = _num_processes(options.num_processes, workload)
    # what is wrong with these must not come out after hours of load
    workload.compute_stats(workload.arrivals, workload.arrivals, np.ones(len(workload)), options.warmup)
    for path in (options.json, options.csv):
        if path is not None and not path.parent.is_dir():
            raise InvalidConfigError(f"{path}: there is no folder {path.parent}")
    predicted = _simulate(named, profiles, workload, RULES_BY_NAME[options.rules]) if options.simulate else None
    placed = named.placement.placed_models()
    endpoint.check_models([name for model_id, name in enumerate(named.model_names) if model_id in placed])
    absent = [name for model_id, name in enumerate(named.model_names) if model_id not in placed]
    if absent and not options.quiet:
        _say(f"note: no group holds {', '.join(absent)}; requests for them are sent all the same")
    try:
        with replay_progress_bar(options.quiet) as show:
            result = replay_workload(
                workload,
                endpoint.url,
                api_key=endpoint.api_key,
                ca_file=endpoint.ca_file,
                insecure=endpoint.insecure,
                timeout_s=options.timeout,
                num_processes=num_processes,
                retries=options.retries,
                from_schedule=options.from_schedule,
                on_progress=show,
            )
    except ReplayInterrupted as stop:
        result = stop.result
        if not result.counts()["sent"]:
            raise
    return _report(options, result, predicted)


def _traffic(options: argparse.Namespace) -> Traffic:
    return Traffic(
        trace=options.trace,
        duration=options.duration,
        start=options.start,
        end=options.end,
        head=options.head,
        assign=options.assign,
        weights=None if options.weights is None else named_numbers(options.weights, "weights"),
        rate_scale=options.rate_scale,
        time_scale=options.time_scale,
        seed=options.seed,
    )


def _num_processes(text: str, workload: Workload) -> int:
    if text != "auto":
        if not text.isdecimal() or not int(text):
            raise InvalidConfigError(f"num-processes must be a whole number >= 1 or auto, got {text!r}")
        return int(text)
    busiest_second = int(np.bincount(workload.arrivals.astype(np.int64)).max())
    return min(math.ceil(busiest_second / PROCESS_RATE), os.cpu_count() or 1)


def _simulate(
    named: NamedPlacement, profiles: Mapping[str, ProfilingResult], workload: Workload, rules: ServingRules
) -> SimulationResult:
    missing = [name for name in named.model_names if name not in profiles]
    if missing:
        raise InvalidConfigError(f"a simulation needs a profile of every model; none is given of {', '.join(missing)}")
    # rates are what a search would expect; a simulation has the requests themselves
    datas = [ModelData(name, math.inf, 0.0, 0.0, profiles[name]) for name in named.model_names]
    return simulate(named.placement, datas, workload, rules)


def _report(options: argparse.Namespace, result: ReplayResult, predicted: SimulationResult | None) -> int:
    # the ends of a part are not those of the whole
    warmup = 0.0 if result.stopped else options.warmup
    stats = result.stats(warmup)
    simulated = None
    if predicted is not None:
        sent = result.was_sent
        simulated = compute_stats(
            predicted.model_ids[sent],
            predicted.model_names,
            predicted.arrivals[sent],
            predicted.finish[sent],
            predicted.good[sent],
            warmup,
        )
    if result.stopped:
        sys.stdout.write("Stopped before all requests were sent and answered; what was measured so far:\n\n")
    sys.stdout.write(format_replay(result, stats, simulated) + "\n")
    if options.json is not None:
        about = {"url": options.url, "placement": str(options.placement), "trace": options.trace, "warmup_s": warmup}
        with replacing(options.json) as file:
            file.write(replay_json(result, stats, simulated, **about).encode())
    if options.csv is not None:
        with replacing(options.csv) as file:
            result.to_frame().to_csv(file, index_label="idx")
    late = result.lateness.p99
    if late > LATE_S:
        _say(
            f"warning: 1 in 100 requests was sent {1e3 * late:.0f} ms late or later; more processes (--num-processes), "
            "another machine or a lower rate would load the server as the trace says"
        )
    if result.stopped:
        _say("stopped; this is what was measured so far")
        return STOPPED
    counts = result.counts()
    return 1 if counts["failed"] or counts["unanswered"] else 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
