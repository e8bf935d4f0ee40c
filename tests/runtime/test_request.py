import asyncio
import copy
import math
import pickle
import time
from types import MappingProxyType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidRequestError
from alpa_serve.runtime import request as request_module
from alpa_serve.runtime.request import CHAT_COMPLETIONS, LARGEST_TOKEN_COUNT, LONGEST_WAY_S, ServeRequest, request_of
from alpa_serve.simulator.workload import Request, Workload

FIELDS = ("endpoint", "model", "slo", "sent", "input_tokens", "output_tokens", "queue_s")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=5,
)
read_keys = st.sampled_from(["model", "slo", "submit_time", "input_tokens", "output_tokens", "idx", "input"])


@pytest.fixture
def at_noon(monkeypatch):
    """Have requests come in at 1000 s."""
    monkeypatch.setattr(request_module, "time", SimpleNamespace(time=lambda: 1000.0))


def attributes(request):
    return {name: getattr(request, name) for name in FIELDS}


@pytest.mark.usefixtures("at_noon")
def test_what_the_object_does_not_say_has_a_default():
    assert attributes(ServeRequest({"model": "a"})) == {
        "endpoint": "",
        "model": "a",
        "slo": math.inf,
        "sent": 1000.0,
        "input_tokens": None,
        "output_tokens": None,
        "queue_s": 0.0,
    }


@pytest.mark.usefixtures("at_noon")
def test_what_the_object_says_is_read():
    posted = {"model": "a", "slo": 2, "submit_time": 990.5, "input_tokens": 7, "output_tokens": 0, "else": [1]}
    request = ServeRequest(posted, endpoint=CHAT_COMPLETIONS)
    assert (request.slo, request.sent, request.input_tokens, request.output_tokens) == (2.0, 990.5, 7, 0)
    assert (request.endpoint, request) == (CHAT_COMPLETIONS, posted)


@pytest.mark.usefixtures("at_noon")
def test_a_client_whose_clock_is_ahead_gets_no_more_time():
    assert ServeRequest({"model": "a", "submit_time": 1000.5}).sent == 1000.0


@pytest.mark.parametrize("submit_time", [0, -1e300, 5e8 - LONGEST_WAY_S - 0.5])
def test_a_request_was_on_its_way_for_an_hour_at_most(monkeypatch, submit_time):
    monkeypatch.setattr(request_module, "time", SimpleNamespace(time=lambda: 5e8))
    assert ServeRequest({"model": "a", "submit_time": submit_time}).sent == 5e8 - LONGEST_WAY_S


def test_a_model_that_is_given_goes_before_that_of_the_object():
    request = ServeRequest({"model": 5}, model="a")
    assert (request.model, request["model"]) == ("a", 5)
    with pytest.raises(InvalidRequestError, match='"model"'):
        ServeRequest({"model": "a"}, model="")


def test_token_counts_of_the_object_go_before_those_of_the_endpoint():
    for field, expected in (({}, 3), ({"input_tokens": None}, 3), ({"input_tokens": 5}, 5), ({"input_tokens": 0}, 0)):
        assert ServeRequest({"model": "a", **field}, input_tokens=3).input_tokens == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", value) for value in (None, "", 5, ["a"], {}, True)]
    + [("slo", value) for value in (-1, -1e-9, "1", True, [], math.nan, math.inf, 10**400, -(10**400))]
    + [("submit_time", value) for value in ("now", False, {}, math.nan, -math.inf, 10**400)]
    + [
        (key, value)
        for key in ("input_tokens", "output_tokens")
        for value in (-1, 1.0, "1", True, [1], LARGEST_TOKEN_COUNT + 1, math.nan)
    ],
)
def test_what_is_not_of_its_kind_is_refused_by_name(key, value):
    with pytest.raises(InvalidRequestError, match=f'"{key}"'):
        ServeRequest({"model": "a", key: value})


def test_a_refusal_shows_little_of_what_was_sent():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for value in ("x" * 10**6, list(range(10**6)), nested, 10**10_000, {"k": nested}):
        for key in ("slo", "input_tokens") if isinstance(value, str) else ("model", "slo", "input_tokens"):
            with pytest.raises(InvalidRequestError) as refusal:
                ServeRequest({"model": "a", key: value})
            assert len(str(refusal.value)) < 150


class _Unwilling:
    def __repr__(self):
        raise KeyError("no")


def test_what_cannot_be_shown_is_named_by_its_type():
    for build in (lambda: asyncio.run(request_of(_Unwilling())), lambda: ServeRequest({"model": _Unwilling()})):
        with pytest.raises(InvalidRequestError, match="_Unwilling"):
            build()


@settings(deadline=None)
@given(st.dictionaries(read_keys, json_values), json_values)
def test_whatever_is_posted_there_is_a_request_or_a_refusal(fields, anything):
    for posted in (fields, {"model": "a", **fields}, anything):
        try:
            request = asyncio.run(request_of(posted))
        except InvalidRequestError:
            continue
        assert request == posted or request != request  # NaN in an unread field
        assert request.model
        assert request.slo >= 0
        assert math.isfinite(request.sent)
        assert time.time() - LONGEST_WAY_S - 60.0 <= request.sent <= time.time()
        assert all(
            count is None or 0 <= count <= LARGEST_TOKEN_COUNT
            for count in (request.input_tokens, request.output_tokens)
        )


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_requests_are_sent_to_groups_with_all_that_was_read(protocol):
    request = ServeRequest({"slo": 3, "submit_time": 1.5}, endpoint=CHAT_COMPLETIONS, model="a", output_tokens=4)
    request.queue_s = 0.25
    for other in (pickle.loads(pickle.dumps(request, protocol)), copy.deepcopy(request)):
        assert type(other) is ServeRequest
        assert other == request
        assert attributes(other) == attributes(request)


def test_models_read_a_plain_copy():
    request = ServeRequest({"model": "a", "input": 1})
    posted = asyncio.run(request.json())
    assert type(posted) is dict
    posted["input"] = 2
    assert request == {"model": "a", "input": 1}


def test_a_request_stays_what_it_is():
    request = ServeRequest({"model": "a"})
    assert asyncio.run(request_of(request)) is request


def test_any_mapping_is_a_request():
    assert asyncio.run(request_of(MappingProxyType({"model": "a"}))) == {"model": "a"}


def test_the_object_of_an_http_request_is_a_request():
    class Posted:
        def __init__(self, value):
            self.value = value

        async def json(self):
            return self.value

    assert asyncio.run(request_of(Posted({"model": "a", "slo": 1}))).slo == 1.0
    for value in ([], "a", None, 5):
        with pytest.raises(InvalidRequestError, match='an object with a "model"'):
            asyncio.run(request_of(Posted(value)))


@pytest.mark.parametrize("posted", [None, 5, "a", [("model", "a")], object()])
def test_what_is_no_object_is_refused(posted):
    with pytest.raises(InvalidRequestError, match='an object with a "model"'):
        asyncio.run(request_of(posted))


@pytest.mark.usefixtures("at_noon")
def test_a_request_of_the_simulator_is_a_request():
    request = asyncio.run(request_of(Request("a", "prompt", 2.0, 4, {}, 17.0, input_tokens=5, output_tokens=6)))
    assert request == {
        "model": "a",
        "input": "prompt",
        "slo": 2.0,
        "submit_time": 17.0,
        "idx": 4,
        "input_tokens": 5,
        "output_tokens": 6,
    }
    assert (request.model, request.sent, request.slo) == ("a", 17.0, 2.0)


def test_a_request_of_the_simulator_may_have_no_slo():
    requests = [
        Request("a", None, math.inf, 0, {}),
        Request("a", None, None, 0, {}),
        Workload.from_columns([0.0], [0], ["a"], [math.inf]).requests[0],
    ]
    for given_request in requests:
        request = asyncio.run(request_of(given_request))
        assert request.slo == math.inf
        assert "slo" not in request


def test_an_object_with_a_bad_model_name_is_refused():
    with pytest.raises(InvalidRequestError, match='"model"'):
        asyncio.run(request_of(SimpleNamespace(model_name=5)))
