import pytest

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError
from alpa_serve.export.maveriq_commands import Deploy, Send, maveriq_commands
from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.profiling import ParallelConfig

CLUSTER = ClusterEnv(4, 1.0)
TWO_GROUPS = [ParallelConfig(1, 2, 1), ParallelConfig(1, 1, 2)]


def model(load_time, name="m", **more):
    return {"name": name, "load_time": load_time, "output_length": 20, **more}


def commands_of(placement, models, counts, **more):
    return maveriq_commands(placement, models, CLUSTER, counts, [1.0] * len(models), **more)


def test_each_replica_loads_90_s_after_the_one_before_it_and_before_the_requests_of_its_step():
    # models 0 and 1 load at step 0 with two replicas and none, model 2 at step 2
    placement = ModelPlacement(TWO_GROUPS, [[0], [0, 2]])
    models = [model(0, "a"), model(0, "b"), model(2, "c")]
    commands = commands_of(placement, models, [3, 3, 3])
    deployed = [command for command in commands if isinstance(command, Deploy)]
    assert deployed == [
        Deploy(0.0, 1, "a", (0, 1), 2, 1, 1),
        Deploy(90.0, 2, "a", (2, 3), 1, 2, 1),
        # client 3, model b, is loaded at 180 s without a command
        Deploy(30 + 60 + 3 * 90.0, 4, "c", (2, 3), 1, 2, 1),
    ]
    steps = [270.0, 30 + 270.0, 60 + 360.0]
    sent = [command.time_s for command in commands if isinstance(command, Send)]
    assert [steps[n // 3] <= time_s <= steps[n // 3] + 29.9 for n, time_s in enumerate(sent)] == [True] * 9
    assert [command.time_s for command in commands] == sorted(command.time_s for command in commands)


def test_requests_are_drawn_and_not_sent_before_anything_is_loaded():
    placement = ModelPlacement(TWO_GROUPS, [[0], []])
    late, early = (commands_of(placement, [model(step)], [5, 2]) for step in (1, 0))
    assert [type(command) for command in late] == [Deploy, Send, Send]
    assert late[0].time_s == 60.0
    assert [command.time_s for command in late[1:]] == [command.time_s for command in early[-2:]]


def test_models_are_equally_likely_and_so_are_the_replicas_of_one():
    placement = ModelPlacement(TWO_GROUPS, [[0], [0, 1]])
    commands = commands_of(placement, [model(0, "a"), model(0, "b"), model(0, "c")], [12000])
    sent = [command.client_id for command in commands if isinstance(command, Send)]
    for client_id, expected in ((1, 2000), (2, 2000), (3, 4000), (4, 4000)):
        assert sent.count(client_id) == pytest.approx(expected, abs=5 * expected**0.5)


def test_a_seed_gives_its_times_whatever_the_choices(random_state_untouched):
    placement = ModelPlacement(TWO_GROUPS, [[0], [0]])
    commands = commands_of(placement, [model(0)], [20, 20])
    assert commands == commands_of(placement, [model(0)], [20, 20])
    assert commands != commands_of(placement, [model(0)], [20, 20], seed=1)


@pytest.mark.parametrize("counts", [[], [1.5], [-1], [[1]], ["1"], 3])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(InvalidConfigError, match="step_counts must be whole numbers >= 0, one per step"):
        commands_of(ModelPlacement([], []), [model(0)], counts)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([model(2)], "model 0, m, loads at step 2, but the trace has only steps 0 to 1"),
        ([model(-1)], "load_time .step. of model 0 must be a whole number >= 0, got -1"),
        ([{"name": "m"}], "model 0 lacks load_time, output_length"),
        ([model(0, output_length=0)], "output_length .tokens. of model 0 must be a whole number >= 1, got 0"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named(models, message):
    with pytest.raises(InvalidConfigError, match=message):
        commands_of(ModelPlacement([], []), models, [1, 1])


def test_a_placement_that_is_none_is_refused():
    with pytest.raises(InvalidPlacementError, match="group 1: no model 1; models are 0 to 0"):
        commands_of(ModelPlacement(TWO_GROUPS, [[0], [1]]), [model(0)], [1])
    with pytest.raises(InvalidPlacementError, match="group 0 holds a model twice"):
        commands_of(ModelPlacement(TWO_GROUPS, [[0, 0], []]), [model(0)], [1])
    with pytest.raises(InvalidPlacementError, match="the groups need 8 devices, the cluster has 4"):
        commands_of(ModelPlacement([ParallelConfig(1, 8, 1)], [[0]]), [model(0)], [1])
    with pytest.raises(InvalidConfigError, match="need an SLO per model, got 0 for 1 models"):
        maveriq_commands(ModelPlacement([], []), [model(0)], CLUSTER, [1], [])
