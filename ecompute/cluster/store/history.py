"""Whether etcd still tells the history that we have seen.

A backup that was put back, or another cluster in the place of the first, looks like any etcd. It is
found by what cannot happen otherwise: within one history a linearizable answer never carries an
older revision, an older term of the Raft log, or another cluster id than any answer that had come
before its question was asked. (The term finds a restored etcd that has already been written past
the revision we knew: restoring begins at the first term again.)

Answers pass each other on the way, so what counts is what had been seen when the question was
*sent*: callers take a `Mark` before and give it back with the answer. Answers that are not
linearizable (a watch's, a lease's) may only raise what was seen, never prove a rollback.

Threads: all methods may be called from any.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """Where a history stood, as an answer's header says."""

    cluster_id: int
    revision: int
    raft_term: int


@dataclass(frozen=True)
class Mark:
    """What had been seen at a moment, and of which of the histories met so far."""

    life: int
    position: Position | None


def contradiction(before: Position, after: Position) -> str | None:
    """Return on one line why ``after`` cannot follow ``before`` in one history, or None."""
    if after.cluster_id != before.cluster_id:
        return f"etcd is another cluster: id {after.cluster_id:x}, before {before.cluster_id:x}"
    if after.revision < before.revision:
        return f"etcd went back to revision {after.revision}, after {before.revision} had been seen"
    if after.raft_term < before.raft_term:
        return (
            f"etcd went back to term {after.raft_term} (revision {after.revision}), "
            f"after term {before.raft_term} (revision {before.revision}) had been seen"
        )
    return None


class History:
    """The highest position seen by this process, and the finding of rollbacks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._life = 0
        self._position: Position | None = None

    def mark(self) -> Mark:
        """Return what was seen so far; taken before a question is sent."""
        with self._lock:
            return Mark(self._life, self._position)

    @property
    def position(self) -> Position | None:
        """The highest revision and term seen of the history followed now; None before any answer."""
        with self._lock:
            return self._position

    def saw(self, mark: Mark, revision: int) -> None:
        """Take note of a revision that came over a watch opened after ``mark`` was taken."""
        with self._lock:
            known = self._position
            if known is not None and mark.life == self._life and revision > known.revision:
                self._position = Position(known.cluster_id, revision, known.raft_term)

    def answered(self, mark: Mark, position: Position) -> str | None:
        """Take note of a linearizable answer to a question sent after ``mark`` was taken.

        Returns:
            On one line why it belongs to another history, once a rollback; None otherwise. The new
            history is followed from then on, and answers to questions from before it prove nothing.
        """
        with self._lock:
            if mark.life != self._life:
                return None
            if mark.position is not None and (reason := contradiction(mark.position, position)):
                self._life += 1
                self._position = position
                return reason
            known = self._position or position
            if position.cluster_id == known.cluster_id:
                self._position = Position(
                    known.cluster_id,
                    max(known.revision, position.revision),
                    max(known.raft_term, position.raft_term),
                )
            return None
