"""The workload that a search is given when there is no trace: drawn from the expected rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidConfigError
from alpa_serve.simulator.arrivals import GammaProcess
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ModelData


def gen_train_workload(
    model_datas: Sequence[ModelData],
    seed: int = 0,
    simulation_min_duration: float = 100,
    simulation_min_samples: int = 30000,
) -> Workload:
    """Draw a Gamma(rate, cv) workload for every model and merge them.

    Parameters
    ----------
    model_datas : sequence of ModelData
        A model of rate 0 has no requests.
    seed : int
        Model i is drawn with seed + i.
    simulation_min_duration : float
        Seconds.
    simulation_min_samples : int
        Requests expected in all; the duration is longer than the minimum where this needs it.

    Raises
    ------
    InvalidConfigError
        If no model has a rate above 0.
    """
    check_real(simulation_min_duration, "simulation_min_duration (s)", minimum=0.0, exclusive=True)
    check_int(simulation_min_samples, "simulation_min_samples", minimum=0)
    total_rate = sum(data.rate for data in model_datas)
    if not total_rate > 0:
        raise InvalidConfigError("no model has a rate above 0; give a train_workload or rates")
    duration = max(simulation_min_duration, simulation_min_samples / total_rate)
    return Workload.merge(
        *(
            GammaProcess(data.rate, data.cv).generate_workload(data.name, 0, duration, slo=data.slo, seed=seed + i)
            for i, data in enumerate(model_datas)
            if data.rate > 0
        )
    )


def workload_or_training(workload: Workload | None, model_datas: Sequence[ModelData]) -> Workload:
    """Return `workload`, or if it is None one drawn from the rates of `model_datas`."""
    return gen_train_workload(model_datas) if workload is None else workload
