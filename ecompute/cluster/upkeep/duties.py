"""What a lead has to do besides finishing instances, each thing at its own pace.

A `Duty` is a constant; `Duty.begin` is called anew with each term, so that nothing that one term
remembered is believed by the next. What it returns is called at once, and then every period, on a
thread of its own, until the term ends. What a call raises is logged once as long as it says the
same, and does not end the duty. What it does for many objects it does for each by itself (`EachAlone`):
one that cannot be helped keeps none of the others waiting.

Every write to etcd carries `Charge.guard`: a leader that was paused past its lease then writes
nothing. A write to placement can compare nothing of etcd: call `Charge.guard` right before it, and
write nothing that a second leader would not write as well.

Threads: one call of a duty at a time within a term. A call that outlives its term may run beside the
first of the next; its guard raises by then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ecompute.cluster.errors import CloudError, Unavailable
from ecompute.cluster.events import Events
from ecompute.cluster.periodic import Periodic
from ecompute.cluster.store import Compare, Store

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement

MAX_TOLD = 1000
"""Of how many objects it is remembered what was logged; beyond, all of them are logged anew."""

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


class NotLeading(CloudError):
    """The term ended while its holder was at work."""

    code = "upkeep.not_leading"


@dataclass(frozen=True)
class Charge:
    """What a duty works with during one term.

    Args:
        events: of the lead; see `Events.record`.
        is_leading: whether the term holds still, by this process's own clock.
        holds: the comparison that only this term's writes survive.
        clock: seconds, monotonic.
    """

    store: Store
    placement: Placement
    events: Events
    is_leading: Callable[[], bool]
    holds: Compare
    clock: Callable[[], float] = time.monotonic
    ended: threading.Event = field(default_factory=threading.Event)

    def guard(self) -> list[Compare]:
        """Return what every transaction compares besides.

        Raises:
            NotLeading: the term has ended; let it pass, the call ends there.
        """
        if self.ended.is_set() or not self.is_leading():
            raise NotLeading("this process does not lead any more")
        return [self.holds]

    def pause(self, seconds: float) -> None:
        """Wait, so as not to burden a service; not a moment longer than the term.

        Raises:
            NotLeading: the term has ended.
        """
        self.ended.wait(seconds)
        self.guard()


@dataclass(frozen=True)
class Duty:
    """Something that the lead does again and again.

    Args:
        name: of the thread, and in the log.
        period_s: from the end of a call to the beginning of the next, give or take a tenth.
        begin: what is called with each new term; returns what is called every period.
    """

    name: str
    period_s: float
    begin: Callable[[Charge], Callable[[], object]]


class EachAlone:
    """Acts for one object at a time, so that what is wrong with one is not in the others' way.

    Safe from several threads, each with objects of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, str] = {}

    def __call__(self, what: str, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what ``act`` returns, or None if it raised: that is logged, once as long as it says the same.

        Args:
            what: could not be done, for people: "the quota of n1 could not be carried out".

        Raises:
            NotLeading: the term has ended, for all of them.
            Unavailable: a service does not answer; so it would be with the others.
        """
        try:
            done = act(*args, **kwargs)
        except (NotLeading, Unavailable):
            raise
        except CloudError as error:
            with self._lock:
                is_news = self._told.get(what) != str(error)
                if is_news and len(self._told) >= MAX_TOLD:
                    self._told.clear()
                self._told[what] = str(error)
            if is_news:
                log.error("%s: %s", what, error)
            return None
        with self._lock:
            self._told.pop(what, None)
        return done


class Turn:
    """The duties of one term, at work from `start` to `end`."""

    def __init__(self, duties: Sequence[Duty], charge: Charge) -> None:
        self._charge = charge
        self._periodics = [
            Periodic(duty.name, _until_it_ends(duty.begin(charge)), period_s=duty.period_s) for duty in duties
        ]

    def start(self) -> None:
        for periodic in self._periodics:
            periodic.start()

    def end(self, timeout_s: float = 0.0) -> None:
        """Begin nothing any more; wait so long for each call that runs. Idempotent."""
        self._charge.ended.set()
        for periodic in self._periodics:
            periodic.stop(timeout_s)


def _until_it_ends(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        try:
            call()
        except NotLeading:
            return

    return run
