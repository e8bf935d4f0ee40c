import pickle

import pytest

from alpa_serve.errors import AlpaServeError, PlanInterrupted, SearchInterrupted
from alpa_serve.placement import ModelPlacement

PLACEMENT = ModelPlacement([(1, 1, 1)], [[0]])


def test_an_interrupt_ends_what_a_keyboard_interrupt_ends_and_is_no_error():
    for interrupt in (SearchInterrupted(placement=PLACEMENT), PlanInterrupted()):
        assert isinstance(interrupt, KeyboardInterrupt)
        assert not isinstance(interrupt, (Exception, AlpaServeError))
    assert str(SearchInterrupted(placement=PLACEMENT)) == "the search was stopped"
    assert str(SearchInterrupted()) == "the search was stopped; no placement was found yet"


@pytest.mark.parametrize(
    "interrupt",
    [
        SearchInterrupted(),
        SearchInterrupted(placement=PLACEMENT, evaluation=0.5),
        PlanInterrupted(plan="a plan", placement=PLACEMENT, evaluation=0.5),
    ],
)
def test_an_interrupt_keeps_what_is_attached_in_another_process(interrupt):
    copy = pickle.loads(pickle.dumps(interrupt))
    assert (type(copy), str(copy), vars(copy)) == (type(interrupt), str(interrupt), vars(interrupt))
