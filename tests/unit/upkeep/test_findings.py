"""What an audit says it found."""

from __future__ import annotations

from dataclasses import fields

from ecompute.cluster.upkeep.decide import Leaks, Question
from ecompute.cluster.upkeep.findings import What, findings

EVERYTHING = Leaks(
    intents={"c1": 7},
    questions=(Question("p1", "c2"), Question("p2", "c2")),
    foreign=("c3",),
    stranded=("c4",),
    orphans={"/tags/system/web/u1": 8},
    unbacked=("u2",),
    hostless=("p3",),
    unregistered=("p4",),
    unwanted=(("p5", "u3"),),
    overfull=(("p6", "VCPU"),),
)


def test_everything_that_two_looks_agree_on_is_a_finding() -> None:
    assert all(getattr(EVERYTHING, field.name) for field in fields(Leaks)), "or the test tests less"
    found = findings(EVERYTHING)
    assert {finding.what for finding in found} == set(What)
    assert {finding.subject for finding in found} == {
        "c1", "c2", "c3", "c4", "/tags/system/web/u1", "u2", "p3", "p4", "u3", "p6 VCPU",
    }  # fmt: skip
    assert next(finding for finding in found if finding.subject == "c2").where == ("p1", "p2")
    assert findings(Leaks()) == ()


def test_what_others_hold_is_told_and_is_not_wrong() -> None:
    assert [finding.subject for finding in findings(EVERYTHING) if not finding.is_wrong] == ["c3"]
