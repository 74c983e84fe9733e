"""The hosts behind placement's candidates."""

from __future__ import annotations

import pytest
from msgspec import structs

from ecompute.cluster.documents import Admin, AdminState, Node
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import Candidate, Candidates
from ecompute.cluster.store import Versioned
from eschedule.scheduler.cache import Offer, by_host
from eschedule.scheduler.candidates import ranked
from eschedule.scheduler.facts import Target


def candidates(*allocations: dict[str, dict[str, int]]) -> Candidates:
    return Candidates(
        items=tuple(Candidate(allocations=one, mappings={}) for one in allocations),
        summaries={},
    )


def node(hold: str | None = None) -> Node:
    return Node(
        provider="p",
        name="host",
        underlay="192.0.2.1",
        underlay_mtu=1500,
        accelerator="tcg",
        hypervisor="",
        version="",
        hold=hold,
        reported_at="",
    )


def admin(state: AdminState) -> Versioned[Admin]:
    return Versioned("/admin/p", Admin(state=state), 1, 1, 0)


def test_the_host_serves_the_vcpu_whoever_serves_the_rest() -> None:
    answer = candidates({"shared": {"DISK_GB": 1}, "p": {"VCPU": 1}}, {"q": {"VCPU": 1, "DISK_GB": 1}})
    assert by_host(answer) == {0: "p", 1: "q"}


def test_candidates_without_one_host_are_passed_over() -> None:
    answer = candidates({"p": {"VCPU": 1}, "q": {"VCPU": 1}}, {"q": {"VCPU": 2}})
    assert by_host(answer) == {1: "q"}


def test_where_none_has_one_host_that_is_said() -> None:
    with pytest.raises(InvalidInput, match="VCPU is served by 2 providers"):
        by_host(candidates({"p": {"VCPU": 1}, "q": {"VCPU": 1}}))


def test_no_candidates_are_no_hosts() -> None:
    assert by_host(candidates()) == {}


def target(provider: str) -> Target:
    return Target(Versioned(f"/nodes/{provider}", structs.replace(node(), provider=provider), 1, 1, 0), None, True)


def test_only_known_hosts_are_ranked() -> None:
    offer = Offer(candidates({"p": {"VCPU": 1}}, {"q": {"VCPU": 1}}))
    assert [one.index for one in ranked(offer, {"q": target("q")}, seed=1)] == [1]


def test_what_a_group_excludes_is_not_ranked_and_what_it_alone_allows_is() -> None:
    offer = Offer(candidates({"p": {"VCPU": 1}}, {"q": {"VCPU": 1}}))
    known = {"p": target("p"), "q": target("q")}
    assert [one.provider for one in ranked(offer, known, 1, excluded={"p"})] == ["q"]
    assert [one.provider for one in ranked(offer, known, 1, only={"p"})] == ["p"]
