"""The requests that a simulation sends to a group, as runs of Vidur: one per model of the group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError
from alpa_serve.export.vidur_run import HUB_NAMES, PROFILED_BY_VIDUR, vidur_command
from alpa_serve.placement import ModelPlacement
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.simulator.simulation import simulate
from alpa_serve.trace.llm.trace import LLMTrace
from alpa_serve.trace.llm.writers import check_for_vidur

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from alpa_serve.placement import ModelData
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.scheduling import ServingRules

TRACE_FILE, OURS_FILE, COMMAND_FILE = "vidur_trace.csv", "ours.csv", "command.sh"
"""What the folder of a run holds."""

_TRACE_VARIABLE = f"""\
# Run it from Vidur's checkout, whose profiles it looks for in the current folder: bash path/to/{COMMAND_FILE}
trace=$(cd "$(dirname "$0")" && pwd)/{TRACE_FILE}
"""

LATENCIES = ("alone", "shared")
"""Two latencies of ours: the group serves only this model, as in Vidur's run; or all the models that it holds."""

OURS_COLUMNS = (
    "request_id",
    "arrival_s",
    "input_tokens",
    "output_tokens",
    *(f"{which}_latency_s" for which in LATENCIES),
)


@dataclass(frozen=True, eq=False)
class VidurRun:
    """The requests for one model that were served on one group; arrays of shape (n,), in the order of arrival.

    Attributes
    ----------
    group_id : int
    config : ParallelConfig
        Of the group.
    model_name : str
        As requests name it.
    arrivals : ndarray of float64
        Seconds.
    input_tokens, output_tokens : ndarray of int64
    shared_latency : ndarray of float64
        Seconds from arrival to finish in the simulation of the whole placement.
    alone_latency : ndarray of float64
        Seconds when the group serves these requests alone and drops none.
    num_dropped : int
        Further requests for the model that were sent to the group and dropped; Vidur does not get them.
    """

    group_id: int
    config: ParallelConfig
    model_name: str
    arrivals: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    shared_latency: NDArray[np.float64]
    alone_latency: NDArray[np.float64]
    num_dropped: int

    def __len__(self) -> int:
        return len(self.arrivals)


def vidur_runs(
    placement: ModelPlacement,
    model_datas: Sequence[ModelData],
    workload: Workload,
    rules: ServingRules,
    group_id: int,
) -> list[VidurRun]:
    """Simulate a placement and return what a group served, a run per model in the order of the group's models.

    Parameters
    ----------
    placement : ModelPlacement
    model_datas : sequence of ModelData
    workload : Workload
        With token counts.
    rules : ServingRules
    group_id : int

    Raises
    ------
    InvalidPlacementError
        If there is no such group, or it holds no model.
    InvalidWorkloadError
        If requests have no token counts.
    """
    num_groups = len(placement.group_configs)
    if not 0 <= group_id < num_groups:
        raise InvalidPlacementError(f"no group {group_id}; groups are 0 to {num_groups - 1}")
    if not placement.group_models[group_id]:
        raise InvalidPlacementError(f"group {group_id} holds no model")
    input_tokens, output_tokens = workload.require_tokens()
    result = simulate(placement, model_datas, workload, rules)
    config = placement.group_configs[group_id]
    runs = []
    for model_id in placement.group_models[group_id]:
        data = model_datas[model_id]
        is_sent = (result.group == group_id) & np.isin(result.model_ids, _ids_of(data.name, result.model_names))
        taken = np.flatnonzero(is_sent & result.served)
        own = Workload.from_columns(
            result.arrivals[taken],
            np.zeros(len(taken), dtype=np.int32),
            [data.name],
            np.full(len(taken), np.inf),
            input_tokens=input_tokens[taken],
            output_tokens=output_tokens[taken],
        )
        alone = simulate(ModelPlacement([config], [[0]]), [data], own, replace(rules, admission="all"))
        runs.append(
            VidurRun(
                group_id,
                config,
                data.name,
                result.arrivals[taken],
                input_tokens[taken],
                output_tokens[taken],
                result.latency[taken],
                alone.latency,
                int(np.count_nonzero(is_sent)) - len(taken),
            )
        )
    return runs


def _ids_of(name: str, model_names: Sequence[str]) -> list[int]:
    return [model_id for model_id, other in enumerate(model_names) if other == name]


def vidur_name(profile_name: str, given: Mapping[str, str]) -> str:
    """Return what Vidur calls a model: the name given for it, or its Hugging Face name.

    Raises
    ------
    InvalidConfigError
        If neither is known.
    """
    name = given.get(profile_name, HUB_NAMES.get(profile_name))
    if name is None:
        raise InvalidConfigError(
            f"Vidur's name of model {profile_name!r} is not known; give it as --vidur_model {profile_name}=NAME"
        )
    return name


@dataclass(frozen=True, eq=False)
class VidurFiles:
    """What the folder of a run holds: `texts` by file name, beside the trace that Vidur replays."""

    trace: LLMTrace
    texts: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write the files to a folder, which is made if it is not there.

        Raises
        ------
        InvalidConfigError
            If it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.trace.write_vidur(folder / TRACE_FILE)
            for name, text in self.texts.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InvalidConfigError(f"{folder} cannot be written: {error}") from None


def vidur_files(
    run: VidurRun,
    profile_name: str,
    vidur_model: str,
    *,
    device: str,
    batch_size: int = 1,
    comments: Sequence[str] = (),
) -> VidurFiles:
    """Return the trace for Vidur, the command line with what it takes for granted, and our latencies.

    Parameters
    ----------
    run : VidurRun
    profile_name, vidur_model : str
        The model's name in our profiles, and Vidur's.
    device : {"a40", "a100", "h100"}
    batch_size : int
        Most requests of a batch of Vidur's.
    comments : sequence of str
        Lines about the simulation, for the head of the command file.

    Raises
    ------
    InvalidTraceError
        If there is no request, or one without input or output tokens; the message names group and model.
    UnknownNameError, InvalidConfigError
        If Vidur has no such device, or the batch size is out of range.
    """
    trace = LLMTrace(
        run.arrivals,
        input_tokens=run.input_tokens,
        output_tokens=run.output_tokens,
        name=f"group {run.group_id}, model {run.model_name}",
    )
    check_for_vidur(trace)
    command = vidur_command(
        vidur_model,
        run.config,
        '"$trace"',
        device=device,
        longest_input=int(run.input_tokens.max()),
        longest_request=int((run.input_tokens + run.output_tokens).max()),
        batch_size=batch_size,
    )
    notes = [
        *comments,
        f"group {run.group_id}, tp {run.config.op}, pp {run.config.pp}, model {run.model_name} ({profile_name}): "
        f"{len(run)} requests, {run.num_dropped} more were dropped and are left out",
        *assumptions(profile_name, device, batch_size),
    ]
    rows = zip(
        range(len(run)),
        *(
            column.tolist()
            for column in (
                run.arrivals,
                run.input_tokens,
                run.output_tokens,
                run.alone_latency,
                run.shared_latency,
            )
        ),
        strict=True,
    )
    texts = {
        OURS_FILE: "".join(f"{','.join(map(str, row))}\n" for row in (OURS_COLUMNS, *rows)),
        COMMAND_FILE: "".join(f"# {note}\n" for note in notes) + _TRACE_VARIABLE + command,
    }
    return VidurFiles(trace, texts)


def assumptions(profile_name: str, device: str, batch_size: int) -> list[str]:
    """Return what a run of Vidur takes for granted that the simulation does not, a sentence each."""
    sentences = [
        "Vidur simulates one model: the other models of the group are not in this run.",
        f"Vidur's device is {device}; the profiles here are of RTX A6000, of which Vidur has none.",
        f"Vidur's batches have at most {batch_size} request{'s' * (batch_size > 1)}; the simulation does not batch.",
        "Arrivals are the simulation's, which wait for models to load; loading itself is simulated by neither.",
        "Flag names were not checked against a version of Vidur: see python -m vidur.main --help.",
    ]
    if profile_name not in PROFILED_BY_VIDUR:
        sentences.append(f"Vidur is not known to ship a profile of {profile_name}: make one with its tools first.")
    return sentences
