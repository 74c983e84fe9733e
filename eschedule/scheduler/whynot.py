"""Why a launch failed, in one line that says what to do. Reads only, and only once it has failed.

What is read of all hosts is kept for `TTL_S`: many launches that are refused one after the other, or at
once, read it once. That there is no room is said of a new answer of placement all the same
(`eschedule.scheduler.offers`); only what the nearest host lacks may be that old. Where all that is kept says
that a host could serve it, it is read anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import TYPE_CHECKING

from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.errors import CloudError, Conflict, InvalidInput, NoRoom
from ecompute.cluster.placement import candidates_query
from eschedule.cloud.explain import Survey, look, survey
from eschedule.scheduler.explain import Explanation
from eschedule.scheduler.facts import Facts
from eschedule.scheduler.question import aggregates_of

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

TTL_S = 5.0


class Stage(IntEnum):
    """How far a launch came."""

    NO_CANDIDATES = 0
    CANDIDATES = 1
    CLAIMED = 2
    """A claim was tried."""


class WhyNot:
    """Safe from several threads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, cloud: Cloud, facts: Facts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cloud = cloud
        self._store = cloud.store
        self._placement = cloud.placement
        self._facts = facts
        self._clock = clock
        self._reading = threading.Lock()
        self._kept: tuple[float, Survey] | None = None

    def no_room(
        self,
        query: str,
        stage: Stage,
        host: str | None,
        *,
        excluded: frozenset[str] = frozenset(),
        only: frozenset[str] | None = None,
    ) -> CloudError:
        """Return what to raise.

        Args:
            query: the user's.
            host: the provider of the one host that it was to be on.
            excluded: hosts that its group does not allow.
            only: the hosts that alone its group allows; None: any other.

        Raises:
            OnHold: etcd holds no cloud, or has lost it.
        """
        incarnation_of(self._store)
        if host is not None:
            return self._on(query, host, excluded, only)
        if stage is Stage.CLAIMED:
            return all_lost()
        for aggregate in aggregates_of(candidates_query(query)):
            if not self._placement.providers(member_of=aggregate):
                return InvalidInput(
                    f"no host is in aggregate {aggregate}", hint="see `eschedule host list` for the zones of hosts"
                )
        is_offered = stage is Stage.CANDIDATES
        text = "no host with room takes anything new now" if is_offered else f"no host can serve {query}"
        hint = f"see `eschedule explain '{query}'`"
        try:
            nodes = self._survey()[0].nodes
            held = sorted((node for node in nodes if node.hold is not None), key=lambda node: node.name)
            if held:
                # Hosts on hold offer nothing, and then that is the reason, and not the lack of room.
                return NoRoom(
                    f"{text}: {len(held)} of {len(nodes)} hosts are on hold ({held[0].name}: {held[0].hold})",
                    hint="see `eschedule hosts`; an operator ends a hold with `ecompute adopt`",
                )
            miss = self._nearest_miss(query, excluded, only)
        except CloudError:
            miss = ""  # whatever goes wrong here does not hide that there is no room
        return NoRoom(f"{text}: {miss}" if miss else text, hint=hint)

    def _nearest_miss(self, query: str, excluded: frozenset[str], only: frozenset[str] | None) -> str:
        """Return which host came nearest to serving ``query``, and what it lacks; empty where one could by now."""
        for found in self._explained(query, excluded, only):
            if not found.able:
                return found.nearest_miss
        return ""

    def _on(self, query: str, host: str, excluded: frozenset[str], only: frozenset[str] | None) -> NoRoom:
        self._facts.forget(host)
        closed = self._facts.refusals([host]).get(host)
        if closed is not None:
            return NoRoom(f"nothing new starts there: {closed}", hint="choose another host, or leave --host out")
        for found in self._explained(query, excluded, only):
            for verdict in found.verdicts:
                if verdict.provider == host and not verdict.is_able:
                    return NoRoom(
                        f"{verdict.name} cannot take it: {verdict.lacks}", hint="ask for less, or leave --host out"
                    )
        return all_lost()

    def _explained(self, query: str, excluded: frozenset[str], only: frozenset[str] | None) -> Iterator[Explanation]:
        """Yield what all hosts lack for ``query``, by what is kept of them, and then by what is read."""
        known, is_new = self._survey()
        yield look(self._cloud, query, known).explain(excluded=excluded, only=only)
        if not is_new:
            known, _ = self._survey(other_than=known)
            yield look(self._cloud, query, known).explain(excluded=excluded, only=only)

    def _survey(self, *, other_than: Survey | None = None) -> tuple[Survey, bool]:
        """Return all hosts, and whether they were read just now. Of several threads one reads."""
        with self._reading:
            now_s = self._clock()
            kept = self._kept
            if kept is not None and now_s - kept[0] < TTL_S and kept[1] is not other_than:
                return kept[1], False
            read = survey(self._cloud)
            self._kept = (now_s, read)
            return read, True


def all_lost() -> NoRoom:
    """Return what to raise where there was room, and others took it."""
    return NoRoom("every claim was lost to somebody else", hint="try again, or see `eschedule hosts`")


def too_long() -> Conflict:
    """Return what to raise where the lead or the audit has ended a launch."""
    return Conflict("this launch took too long and was given up for dead", hint="launch it again")


def put_back() -> Conflict:
    """Return what to raise where the incarnation is another one whenever it is read."""
    return Conflict("the cloud's data is being put back", hint="try again when it is done")
