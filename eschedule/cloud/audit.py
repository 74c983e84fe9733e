"""An audit on demand: two looks, some time apart, and what they agree on. The same code as the lead's.

What hosts found on themselves they tell; it is shown, and is theirs to repair.

Safe beside the lead and other auditors: every write compares what was read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ecompute.cluster import keys
from ecompute.cluster.documents import HostAudit, timestamp
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.events import TOOL, Events
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S, Leaks
from ecompute.cluster.upkeep.findings import Finding, findings, of_hosts
from eschedule.cloud.connection import Cloud

__all__ = ["GRACE_S", "Audited", "Finding", "audit"]


@dataclass(frozen=True)
class Audited:
    """What two looks agree on, and what hosts tell of themselves.

    Args:
        since: when the first of them began, RFC 3339.
    """

    findings: tuple[Finding, ...]
    since: str

    @property
    def is_clean(self) -> bool:
        return not any(finding.is_wrong for finding in self.findings)


def audit(
    cloud: Cloud,
    *,
    grace_s: float = GRACE_S,
    is_repairing: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
) -> Audited:
    """Look twice, ``grace_s`` seconds apart; repair what both say if ``is_repairing``.

    Args:
        on_step: told of each step, for a progress line.

    Raises:
        InvalidInput: a repair after less than `GRACE_S` could take what is on its way for what is left.
        Unavailable: etcd or placement does not answer.
    """
    if not 0 <= grace_s <= 86_400:
        raise InvalidInput(f"a grace of {grace_s:g} seconds cannot be meant", hint=f"the default is {GRACE_S:g}")
    if is_repairing and grace_s < GRACE_S:
        raise InvalidInput(
            f"to repair, two looks {GRACE_S:g} seconds apart have to agree", hint="leave --grace out, or --repair"
        )
    since = timestamp(now())
    auditor = Audit(
        cloud.store,
        cloud.placement,
        list,
        clock,
        events=Events(cloud.store, TOOL, now),
        pause=sleep,
        grace_s=grace_s,
    )
    on_step("looking at placement and etcd")
    auditor.look(is_full=True)
    on_step(f"waiting {grace_s:g} s for what is on its way")
    sleep(grace_s)
    on_step("looking again")
    found: Leaks = auditor.look(is_full=True)
    if is_repairing:
        on_step("repairing")
        auditor.repair(found)
        auditor.obey(found)
    told = {keys.last(item.key): item.value for item in cloud.store.each(keys.AUDITS, HostAudit)}
    return Audited(findings(found) + of_hosts(told), since)
