"""What a dead controller's processes tell its successor, and how long it waits for them."""

import asyncio

import pytest
from cluster_fakes import FakeActor
from ray.exceptions import ActorUnavailableError, RayActorError

from alpa_serve.runtime import peers as peers_module
from alpa_serve.runtime.peers import newest_snapshot
from alpa_serve.runtime.snapshots import Snapshot

OLD, NEW = Snapshot(3, b"old"), Snapshot(4, b"new")
UNREACHABLE = ActorUnavailableError("not now", None)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Make the pauses short."""
    monkeypatch.setattr(peers_module, "PAUSE_S", 0.01)
    monkeypatch.setattr(peers_module, "LATER_ANSWERS_S", 0.1)


async def silent():
    await asyncio.Event().wait()


def newest_of(*kept, patience_s=20.0):
    async def main():
        peers = {str(i): FakeActor(kept=end) for i, end in enumerate(kept)}
        return await asyncio.wait_for(newest_snapshot(peers, patience_s), 20)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("kept", "newest"),
    [
        ([], None),
        ([None, None], None),
        ([RayActorError()], None),
        ([OLD, None, NEW, RayActorError()], NEW),
        ([[UNREACHABLE, UNREACHABLE, NEW]], NEW),
    ],
)
def test_the_newest_that_any_process_has_is_what_the_controller_knew(kept, newest):
    assert newest_of(*kept) == newest


def test_a_process_that_does_not_answer_is_not_waited_for_once_another_has():
    assert newest_of(silent, OLD) == OLD


def test_a_busy_process_is_waited_for_if_no_other_knows_anything(caplog):
    async def late():
        await asyncio.sleep(0.3)
        return NEW

    assert newest_of(late, None) == NEW
    assert "begins anew" not in caplog.text


def test_beginning_anew_because_nobody_answers_is_logged(caplog):
    assert newest_of(silent, patience_s=0.2) is None
    assert "none of 1 processes told within 0.2 s" in caplog.text
