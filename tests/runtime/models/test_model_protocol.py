import pytest

from alpa_serve.errors import InvalidConfigError
from alpa_serve.profiling import ParallelConfig
from alpa_serve.runtime.models import EmulatedModel, OpenAICompatibleModel, protocol
from alpa_serve.runtime.models.protocol import replica_timing_of
from alpa_serve.scheduling import ALPASERVE, ReplicaTiming


class Plain:
    async def handle_request(self, request):
        return None


class Declaring(Plain):
    def __init__(self, latencies):
        self.get_latency_dict = lambda: latencies


class Timed(Declaring):
    def __init__(self, timing):
        super().__init__({1: [9.0]})
        self.timing = lambda rules: timing


def test_a_model_is_timed_by_what_it_says_itself():
    timing = ReplicaTiming((1.0,), 0.5, 0.25)
    assert replica_timing_of(Timed(timing), "a", ALPASERVE) == timing
    assert replica_timing_of(Timed(None), "a", ALPASERVE) is None
    assert replica_timing_of(Declaring({1: [0.5, 1]}), "a", ALPASERVE) == ReplicaTiming((0.5, 1.0))
    assert replica_timing_of(Plain(), "a", ALPASERVE) is None


def test_times_that_are_none_name_the_model():
    with pytest.raises(InvalidConfigError, match=r"model 'a'.*no batch size 1"):
        replica_timing_of(Declaring({2: [1.0]}), "a", ALPASERVE)
    with pytest.raises(InvalidConfigError, match=r"model 'a': timing\(\) must return"):
        replica_timing_of(Timed(0.5), "a", ALPASERVE)


def test_the_models_that_come_along_follow_the_protocols(profile_of):
    config = ParallelConfig(1, 1, 1)
    emulated = EmulatedModel(profile_of({config: {1: [1.0]}}), config)
    forwarding = OpenAICompatibleModel("http://127.0.0.1:1/v1", "a")
    common = {"Model", "StreamingModel", "TimedModel", "WarmedModel", "ClosableModel"}
    names = {name for name in vars(protocol) if name.endswith("Model")}

    def followed(model):
        return {name for name in names if isinstance(model, getattr(protocol, name))}

    assert followed(emulated) == common | {"LatencyModel", "PlacedModel"}
    assert followed(forwarding) == common
    assert followed(Plain()) == {"Model"}
