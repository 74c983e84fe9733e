"""Destroys instances whose time is up. A duty of the lead.

``/expiries`` is ordered by time: a turn reads from its beginning until the first that is not due.
Each is destroyed in the transaction of `ending.mark_deleting`, by the code that serves who asks for
it, and its key goes in the same one; a key whose instance is gone, or expires at another time, is
deleted by itself. Died in between, the next turn finds what is left. Times are compared with this
host's own clock, which a lead had better keep right: what is due once stays due.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ecompute.cluster import keys
from ecompute.cluster.documents import Expiry, Instance, State
from ecompute.cluster.ending import mark_deleting
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.expiring import key_of
from ecompute.cluster.store import Delete, Versioned, absent, unchanged
from ecompute.cluster.upkeep.duties import Charge, Duty, EachAlone

PERIOD_S = 15.0
PAGE = 100

log = logging.getLogger(__name__)


def is_due(key: str, now_s: float) -> bool:
    """Whether the time in a key under ``/expiries`` has come. What is no time never comes. Pure."""
    seconds = keys.parts(key)[1]
    return seconds.isascii() and seconds.isdigit() and len(seconds) == 12 and int(seconds) <= now_s


class Sweep:
    """One term's.

    Args:
        now: seconds since 1970.
    """

    def __init__(self, charge: Charge, now: Callable[[], float] = time.time) -> None:
        self._charge = charge
        self._now = now
        self._each = EachAlone()

    def __call__(self) -> None:
        """Destroy all that is due.

        Raises:
            Unavailable: etcd does not answer; call again.
            NotLeading: the term has ended.
        """
        while True:
            page = self._charge.store.list(keys.EXPIRIES, Expiry, limit=PAGE).items
            due = [item for item in page if is_due(item.key, self._now())]
            done = [
                self._each(f"instance {keys.last(item.key)}, which expired, could not be destroyed", self._end, item)
                for item in due
            ]
            if len(page) < PAGE or not any(done) or len(due) < len(page):
                return

    def _end(self, expiry: Versioned[Expiry]) -> bool:
        """Destroy one; return whether its key is gone."""
        store, charge = self._charge.store, self._charge
        uuid = keys.last(expiry.key)
        instance = store.get(keys.instance(uuid), Instance)
        try:
            if instance is None:
                store.commit([absent(keys.instance(uuid)), unchanged(expiry), *charge.guard()], [Delete(expiry.key)])
            elif instance.value.state is State.DELETING or key_of(instance.value) != expiry.key:
                store.commit([unchanged(instance), unchanged(expiry), *charge.guard()], [Delete(expiry.key)])
            else:
                mark_deleting(
                    store,
                    charge.events,
                    instance,
                    event="expired",
                    reason=f"it was to end at {instance.value.expires_at}: its host is asked to remove it",
                    compares=[unchanged(expiry), *charge.guard()],
                    operations=[Delete(expiry.key)],
                )
                log.info("instance %s has expired", uuid)
        except CompareFailed:
            return False  # extended, or destroyed by somebody, just now
        return True


EXPIRY = Duty("expiry", PERIOD_S, Sweep)
