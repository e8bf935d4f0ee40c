"""The problem that a module states in MODELS (dicts of profile, rate, cv, slo), as the searches take it; and Ray."""

import pytest


@pytest.fixture(scope="module")
def datas(request, model_datas_of):
    return model_datas_of(request.module.MODELS)


@pytest.fixture(scope="module")
def workload(request, workload_of):
    return workload_of(request.module.MODELS, 40)


@pytest.fixture(scope="module")
def ray():
    """Return the package; a Ray that is initialised is shut down after the module."""
    ray = pytest.importorskip("ray")
    yield ray
    ray.shutdown()


@pytest.fixture
def no_ray(ray):
    """Return the package, with no Ray initialised."""
    ray.shutdown()
    yield ray
    assert not ray.is_initialized(), "the runner has left its own Ray running"
