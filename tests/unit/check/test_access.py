"""What `ecompute check` says of etcd's users."""

from __future__ import annotations

from ecompute.access import Found, judge
from ecompute.cluster import roles
from ecompute.cluster.roles import Access, Grant

PROVIDER = "5a4cbd31-2cf8-4b7b-a1a9-0a6f3bd0c8ee"
ALL_WELL = Found(is_enabled=True, provider=PROVIDER)


def test_an_etcd_that_does_not_answer_is_no_problem_of_the_machines() -> None:
    [result] = judge(Found(silence="etcd at a:1 does not answer"), "host-1")
    assert result.is_ok
    assert "does not answer" in result.note


def test_an_etcd_that_asks_nobody_is_said_to() -> None:
    [result] = judge(Found(), "host-1")
    assert result.is_ok
    assert "may do everything" in result.note


def test_a_host_with_its_role_needs_nothing_to_let_others_lead() -> None:
    host, lead = judge(ALL_WELL, "host-1")
    assert (host.problem, host.note) == (None, "this host's role suffices")
    assert (lead.problem, lead.note) == (None, "no credentials for it: others lead")


def test_what_a_role_lacks_is_named_with_the_command_that_mends_it() -> None:
    lacking = roles.host(PROVIDER)[:5]
    host, _ = judge(Found(is_enabled=True, provider=PROVIDER, lacking=lacking), "host-1")
    assert host.problem == (
        f"this host's user may not read /cluster/, read /hosts/{PROVIDER}/, read /secrets/{PROVIDER}/ and 2 more; "
        "`eschedule host enrol host-1`, as root"
    )


def test_a_user_with_more_than_a_host_needs_is_noted() -> None:
    found = Found(is_enabled=True, provider=PROVIDER, too_much=(Grant("/instances/", Access.WRITE),))
    host, _ = judge(found, None)
    assert host.is_ok
    assert "write /instances/" in host.note


def test_a_host_without_a_uuid_is_to_be_enrolled() -> None:
    [result] = judge(Found(is_enabled=True), None)
    assert result.problem is not None
    assert "host enrol NAME" in result.problem


def test_the_leads_credentials_are_tried_as_well() -> None:
    found = Found(is_enabled=True, provider=PROVIDER, has_upkeep=True, upkeep_lacking=roles.upkeep()[:1])
    _, lead = judge(found, "host-1")
    assert lead.problem == "the lead's user may not read /; `eschedule host enrol host-1`, as root with --upkeep"
    _, refused = judge(Found(is_enabled=True, provider=PROVIDER, has_upkeep=True, upkeep_problem="no"), "host-1")
    assert refused.problem == "no"
    _, fine = judge(Found(is_enabled=True, provider=PROVIDER, has_upkeep=True), "host-1")
    assert fine.is_ok
