"""What a warm-up changes for requests with an SLO, and what those see that come meanwhile."""

import requests
from models_for_tests import SlowModel


def test_an_slo_is_rejected_that_a_model_cannot_meet_once_it_is_measured(start, load):
    service = start({"a": (SlowModel, [0.5])}, {0: ["a"]})
    url = service.url

    def answer_with(slo):
        return requests.post(url, json={"model": "a", "slo": slo, "idx": 7}, timeout=60).json()

    assert answer_with(0.8) == {"idx": 7}
    with load(url, [{"model": "a"}], rate=2) as requests_sent:
        requests_sent.wait_for_answers(1)
        scale = service.call("warmup")["a"][0]
        requests_sent.wait_for_answers(1)
    # those that came meanwhile have waited
    requests_sent.check()
    assert 1.9 <= scale < 4.0
    assert answer_with(0.8) == {"rejected": True}
    assert answer_with(60.0) == {"idx": 7}
