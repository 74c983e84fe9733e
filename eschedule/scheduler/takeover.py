"""What is left of a launch whose process died, given up by who repeats it: the audit's work, for that one.

As there, the intent is deleted first, and only if nobody has written it meanwhile: a launcher that only slept
finds it gone, and has its request refused. Then the host is asked, and the claim released where it says that
nothing is there. Right before that it is seen that the uuid is still spent, as the deletion of the intent made it:
an etcd that was put back in between has the intent again. A host that does not answer leaves the claim to the
audit.

Safe from several threads; of several who take over the same, one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ecompute.cluster import keys
from ecompute.cluster.documents import UsedUuid
from ecompute.cluster.errors import Conflict
from ecompute.cluster.events import TOOL, Events
from ecompute.cluster.store import Compare, unchanged
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import Leaks, Question

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

ANSWER_TIMEOUT_S = 5.0


def take_over(cloud: Cloud, consumer: str, mod_revision: int) -> None:
    """Give up the launch of ``consumer``, whose uuid a client chose, unless its intent has changed.

    Args:
        mod_revision: of the intent, as it was seen.

    Raises:
        Unavailable: etcd or placement does not answer; the audit does the rest.
    """
    store, placement, events = cloud.store, cloud.placement, Events(cloud.store, TOOL)

    def still_spent() -> list[Compare]:
        used = store.get(keys.used_uuid(consumer), UsedUuid)
        if used is None or not used.value.is_spent or used.value.is_launched:
            raise Conflict(f"the launch of {consumer} goes on")
        return [unchanged(used)]

    held = placement.allocations(consumer).allocations
    hosts = [provider for provider, amounts in held.items() if "VCPU" in amounts]
    Audit(store, placement, list, events=events).repair(Leaks(intents={consumer: mod_revision}))
    questions = tuple(Question(host, consumer) for host in hosts)
    Audit(store, placement, still_spent, events=events, answer_timeout_s=ANSWER_TIMEOUT_S).repair(
        Leaks(questions=questions)
    )
