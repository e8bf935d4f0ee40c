import math

import pytest

from alpa_serve.errors import ModelFailedError
from alpa_serve.runtime.packing import pack, unpack
from alpa_serve.runtime.reply import Reply
from alpa_serve.runtime.request import ServeRequest


def test_a_request_arrives_with_all_that_the_runtime_read_of_it():
    request = ServeRequest({"model": "m", "slo": 2, "submit_time": 1.5, "input": [1, {"a": None}]}, output_tokens=3)
    arrived = unpack(pack(request))
    assert type(arrived) is ServeRequest
    assert arrived == request
    assert vars(arrived) == vars(request)
    assert (arrived.slo, arrived.sent, arrived.output_tokens) == (2.0, 1.5, 3)


def test_a_reply_arrives_with_its_error():
    arrived = unpack(pack(Reply(None, ModelFailedError("why"), 0.5)))
    assert isinstance(arrived, Reply)
    assert isinstance(arrived.error, ModelFailedError)
    assert (str(arrived.error), arrived.queue_s) == ("why", 0.5)
    assert math.isnan(unpack(pack(Reply(math.nan))).answer)


def test_an_object_of_a_class_that_only_the_main_program_has_arrives_with_its_class():
    # not to be found in the main module, as in a process of Ray's
    of_main = type("OfMain", (dict,), {"__module__": "__main__", "total": lambda self: sum(self.values())})
    arrived = unpack(pack(Reply(of_main(a=1, b=2))))
    assert arrived.answer == {"a": 1, "b": 2}
    assert arrived.answer.total() == 3


def test_what_cannot_be_pickled_is_an_error():
    with pytest.raises(TypeError, match="generator"):
        pack(Reply(n for n in range(3)))
