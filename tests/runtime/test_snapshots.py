from alpa_serve.runtime.snapshots import Snapshot, SnapshotKeeper


def test_the_newest_is_kept_in_whatever_order_they_come():
    keeper = SnapshotKeeper()
    assert keeper.newest is None
    for version, newest in ((3, 3), (1, 3), (4, 4), (2, 4)):
        keeper.keep(Snapshot(version, b"%d" % version))
        assert keeper.newest == Snapshot(newest, b"%d" % newest)


def test_a_second_one_of_the_same_version_changes_nothing():
    keeper = SnapshotKeeper()
    assert keeper.keep(Snapshot(1, b"first"))
    assert not keeper.keep(Snapshot(1, b"second"))
    assert keeper.newest == Snapshot(1, b"first")


def test_what_is_kept_does_not_lie_in_memory_of_the_sender():
    theirs = bytearray(b"known")
    keeper = SnapshotKeeper()
    keeper.keep(Snapshot(1, memoryview(theirs)))
    theirs[:] = b"freed"
    assert keeper.newest.pickled == b"known"
