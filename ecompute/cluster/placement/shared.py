"""A part in another client's session: many users of placement in one process.

Closed, it is as good as a process that was killed: nothing more is sent, and who waits for an answer
gets none. Claims of all users take turns with one another. Threads: as `Placement`.
"""

from __future__ import annotations

from ecompute.cluster.placement.client import Placement
from ecompute.cluster.placement.transport import Answer, Parameters, Transport


class _Door(Transport):
    """The way over another transport's session, which can be shut."""

    def __init__(self, through: Transport) -> None:
        self._set_up(through.endpoint, through.timeout_s, through._session)
        self._is_shut = False

    def close(self) -> None:
        self._is_shut = True

    def _once(self, method: str, path: str, parameters: Parameters, document: object, timeout_s: float) -> Answer:
        self._check()
        answer = super()._once(method, path, parameters, document, timeout_s)
        self._check()
        return answer

    def _check(self) -> None:
        if self._is_shut:
            raise self._unavailable("the connection is closed")


class SharedPlacement(Placement):
    """One user's part in ``whole``."""

    def __init__(self, whole: Placement) -> None:
        self._set_up(_Door(whole._transport), whole._turns)
