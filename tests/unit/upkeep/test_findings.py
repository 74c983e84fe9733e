"""What an audit says it found."""

from __future__ import annotations

from dataclasses import fields

from ecompute.cluster.documents import HostAudit, HostFinding
from ecompute.cluster.upkeep.decide import Belonging, Leaks, Question
from ecompute.cluster.upkeep.findings import FURTHER, What, findings, of_hosts
from ecompute.cluster.upkeep.misfits import Kind, Misfit

EVERYTHING = Leaks(
    intents={"c1": 7},
    questions=(Question("p1", "c2"), Question("p2", "c2")),
    foreign=("c3",),
    stranded=("c4",),
    orphans={"/tags/system/web/u1": 8},
    vacant={"/networks/n1/hosts/p7": 9},
    unbacked=("u2",),
    hostless=("p3",),
    unregistered=("p4",),
    unwanted=(("p5", "u3"),),
    overfull=(("p6", "VCPU"),),
    short=("u4",),
    beyond=("u5",),
    ownerless={"/names/system/network/n/u6": Belonging("/networks/u6", 9)},
    abandoned=("p7",),
    misfits=tuple(Misfit(kind, f"the subject of {kind}") for kind in Kind),
)


def test_everything_that_two_looks_agree_on_is_a_finding() -> None:
    assert all(getattr(EVERYTHING, field.name) for field in fields(Leaks)), "or the test tests less"
    found = findings(EVERYTHING)
    assert {finding.what for finding in found} == {*What, *Kind}
    assert {finding.subject for finding in found} == {
        "c1", "c2", "c3", "c4", "/tags/system/web/u1", "u2", "p3", "p4", "u3", "p6 VCPU", "u4", "u5",
        "/names/system/network/n/u6", "p7", "/networks/n1/hosts/p7", *(f"the subject of {kind}" for kind in Kind),
    }  # fmt: skip
    assert next(finding for finding in found if finding.subject == "c2").where == ("p1", "p2")
    assert findings(Leaks()) == ()


def test_what_others_hold_is_told_and_is_not_wrong() -> None:
    assert [finding.subject for finding in findings(EVERYTHING) if not finding.is_wrong] == ["c3"]


def test_what_hosts_tell_of_themselves_is_in_the_same_form_and_says_since_when() -> None:
    told = HostFinding(what="device-without-owner", subject="ecb000005", since="then", repair="none")
    audits = {
        "p1": HostAudit(findings=(told,), more=3, reported_at="now"),
        "p2": HostAudit(findings=(told,), reported_at="now"),
    }
    found = of_hosts(audits)
    assert [(finding.what, finding.where, finding.since) for finding in found] == [
        ("device-without-owner", ("p1",), "then"),
        ("device-without-owner", ("p2",), "then"),
        (FURTHER, ("p1",), "now"),
    ]
    assert all(finding.is_wrong for finding in found)
