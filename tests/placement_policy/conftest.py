"""The problem that a test module states in MODELS (dicts with profile, rate, cv and slo), as the searches take it."""

import pytest


@pytest.fixture(scope="module")
def datas(request, model_datas_of):
    return model_datas_of(request.module.MODELS)


@pytest.fixture(scope="module")
def workload(request, workload_of):
    return workload_of(request.module.MODELS, 40)
