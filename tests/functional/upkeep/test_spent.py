"""Uuids that clients chose are forgotten long after they were used up, and not before."""

from __future__ import annotations

from typing import cast

from ecompute.cluster import keys
from ecompute.cluster.documents import IdempotencyKey, Incarnation, UsedUuid, timestamp
from ecompute.cluster.events import LEAD, Events
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Put, Store, present
from ecompute.cluster.upkeep.duties import Charge
from ecompute.cluster.upkeep.leader import DUTIES
from ecompute.cluster.upkeep.spent import KEPT_DAYS, SPENT, Forgetter

DAY_S = 86400.0


def test_a_spent_uuid_goes_with_its_key_after_its_days_and_one_in_use_stays(store: Store) -> None:
    made_at = timestamp(0)
    store.commit([], [Put(keys.INCARNATION, Incarnation(id="i", made_by="a test", made_at=made_at))])
    for uuid, is_spent in (("old", True), ("used", False)):
        used = UsedUuid(uuid=uuid, namespace="system", digest="d", is_spent=is_spent, made_at=made_at)
        key = IdempotencyKey(key=f"key-{uuid}", uuid=uuid, digest="d", made_at=made_at)
        store.commit([], [Put(keys.used_uuid(uuid), used), Put(keys.idempotency("system", key.key), key)])
    nothing = cast(Placement, None)  # it is not asked
    charge = Charge(store, nothing, Events(store, LEAD), lambda: True, present(keys.INCARNATION))
    now_s = 1000 * DAY_S
    forget = Forgetter(charge, lambda: now_s)
    both = [keys.used_uuid("old"), keys.used_uuid("used")]
    forget()
    assert store.keys(keys.UUIDS)[0] == both, "it was not known until now that it is spent"
    now_s += KEPT_DAYS * DAY_S - 1
    forget()
    assert store.keys(keys.UUIDS)[0] == both
    now_s += 1
    forget()
    assert store.keys(keys.UUIDS)[0] == [keys.used_uuid("used")]
    assert store.keys(keys.IDEMPOTENCY)[0] == [keys.idempotency("system", "key-used")]


def test_the_lead_has_that_duty() -> None:
    assert SPENT in DUTIES
