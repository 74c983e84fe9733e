"""What a host tells of its own audit, on a real etcd; what it sees is given."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

import pytest

from ecompute.audit.auditor import MAX_SHOWN, HostAuditor
from ecompute.audit.compare import GRACE_S, Assigned, OwnLook, What
from ecompute.cluster import keys
from ecompute.cluster.documents import HostAudit, Incarnation, Power, Role
from ecompute.cluster.events import HOST, read
from ecompute.cluster.store import Put, Store

PROVIDER = "00000000-0000-0000-0000-00000000000a"
GUEST = "00000000-0000-0000-0000-000000000001"
KEY = keys.audit(PROVIDER)
LEFT = OwnLook(domains={GUEST: Power.ON})
MISSING = OwnLook(assigned={GUEST: Assigned(Role.RUN, 7)})


class Host:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.sees = OwnLook()
        self.now_s = 1000.0
        self.woken: list[str] = []
        self.is_held = False
        self.restart()

    def restart(self) -> None:
        self.auditor = HostAuditor(
            self.store,
            PROVIDER,
            lambda: self.sees,
            self.woken.append,
            is_held=lambda: self.is_held,
            rng=random.Random(1),
            clock=lambda: self.now_s,
            now=lambda: self.now_s,
        )

    def audit(self) -> HostAudit | None:
        """Have it look once more, a grace period later; return what is shown then."""
        self.now_s += GRACE_S
        self.auditor.audit()
        found = self.store.get(KEY, HostAudit)
        return None if found is None else found.value

    def events(self) -> list[tuple[str, str]]:
        return [(event.type, event.message) for event in read(self.store, HOST, PROVIDER, PROVIDER)]


@pytest.fixture
def host(store: Store) -> Host:
    return Host(store)


def test_a_host_in_order_writes_nothing(host: Host, store: Store) -> None:
    before = store.status().revision
    for _ in range(3):
        assert host.audit() is None
    assert store.status().revision == before


def test_what_two_looks_see_is_shown_with_an_event_and_taken_back_when_it_is_over(host: Host) -> None:
    host.sees = LEFT
    assert host.audit() is None, "one look is none"
    shown = host.audit()
    assert shown is not None
    (finding,) = shown.findings
    assert (finding.what, finding.subject) == ("guest-without-assignment", GUEST)
    assert finding.since == "1970-01-01T00:17:40.000Z", "when it was first seen"
    assert host.events() == [("audit.found", f"guest-without-assignment: {GUEST}")]
    assert host.audit() == shown, "nothing new, nothing written"
    host.sees = OwnLook()
    assert host.audit() is None
    assert host.events()[1:] == [("audit.settled", f"guest-without-assignment: {GUEST}")]
    assert host.woken == [], "it is left alone"


def test_a_lane_is_woken_for_what_it_can_put_right(host: Host) -> None:
    host.sees = MISSING
    host.audit()
    assert host.woken == []
    host.audit()
    assert host.woken == [GUEST]


def test_on_hold_it_tells_and_wakes_nobody(host: Host) -> None:
    host.is_held, host.sees = True, MISSING
    host.audit()
    assert host.audit() is not None
    assert host.woken == []


def test_another_daemon_goes_on_where_the_one_before_has_told(host: Host) -> None:
    host.sees = LEFT
    host.audit()
    shown = host.audit()
    host.restart()
    host.auditor.audit()
    host.sees = OwnLook(domains={GUEST: Power.ON}, strays=frozenset({"x"}))
    host.audit()
    again = host.audit()
    assert again is not None and shown is not None
    assert again.findings[1:] == shown.findings, "since then"
    assert [finding.what for finding in again.findings] == [What.FILES, What.GUEST]


def test_an_emptied_etcd_makes_no_endless_document(host: Host) -> None:
    host.sees = OwnLook(domains={str(uuid.uuid4()): Power.ON for _ in range(MAX_SHOWN + 5)})
    host.audit()
    shown = host.audit()
    assert shown is not None
    assert (len(shown.findings), shown.more) == (MAX_SHOWN, 5)
    ((_, message),) = host.events()
    assert len(message) < 200


@pytest.mark.parametrize("is_found", [True, False])
def test_what_cannot_be_read_there_is_written_anew(host: Host, store: Store, is_found: bool) -> None:
    store.commit([], [Put(KEY, Incarnation(id="x", made_by="x", made_at="x"))])
    host.sees = LEFT if is_found else OwnLook()
    host.auditor.audit()
    shown = host.audit()
    assert (shown is not None) is is_found


def test_from_start_to_stop_it_looks_by_itself(host: Host, eventually: Callable[..., None]) -> None:
    looked: list[bool] = []
    host.auditor = HostAuditor(
        host.store,
        PROVIDER,
        lambda: looked.append(True) or OwnLook(),
        host.woken.append,
        is_held=lambda: False,
        rng=random.Random(1),
    )
    host.auditor.start()
    eventually(lambda: looked)
    host.auditor.stop()
