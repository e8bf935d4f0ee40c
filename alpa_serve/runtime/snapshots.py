"""What a controller knows, kept by its peers so that its successor can go on."""

from __future__ import annotations

from typing import NamedTuple


class Snapshot(NamedTuple):
    """What a controller knew at some time.

    Attributes
    ----------
    version : int
        Grows with every change.
    pickled : bytes
        By the controller, for a controller.
    """

    version: int
    pickled: bytes


class SnapshotKeeper:
    """Keeps the newest of the snapshots that it is given.

    Attributes
    ----------
    newest : Snapshot or None
    """

    def __init__(self) -> None:
        self.newest: Snapshot | None = None

    def keep(self, snapshot: Snapshot) -> bool:
        """Keep this one, unless a newer one is here; return whether it is the newest."""
        if self.newest is not None and snapshot.version <= self.newest.version:
            return False
        # bytes that come by Ray lie in its object store, which their sender's death may free
        self.newest = Snapshot(snapshot.version, bytes(snapshot.pickled))
        return True
