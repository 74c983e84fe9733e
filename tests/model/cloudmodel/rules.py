"""The rules of the protocol, each of which can be broken to see that an invariant notices."""

from __future__ import annotations

from dataclasses import dataclass


class Violated(AssertionError):
    """An invariant does not hold. ``name`` says which."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


@dataclass(frozen=True)
class Rules:
    """As the product has them. Some protect the same thing twice: breaking one may take two."""

    audit_deletes_the_intent_first: bool = True
    audit_asks_the_host: bool = True
    audit_asks_again_who_holds: bool = True
    audit_asks_in_the_lane: bool = True
    audit_claims_again: bool = True
    reclaim_never_releases: bool = True
    lead_checks_its_lease: bool = True
    lead_looks_for_its_key: bool = True
    finish_waits_for_gone: bool = True
    host_checks_the_claim: bool = True
    host_remembers_before_the_start: bool = True
    host_remembers_what_it_removed: bool = True
    host_leaves_what_nobody_asks_for: bool = True
    host_keeps_what_may_have_run: bool = True
    host_holds: bool = True
    report_compares_the_assignment: bool = True
    lost_is_not_gone: bool = True
    request_compares_the_intent: bool = True
    unanswered_request_is_settled: bool = True
    settled_request_keeps_its_host: bool = True
    uuids_are_used_once: bool = True
    chosen_uuids_are_kept: bool = True
    found_claim_is_in_doubt: bool = True
    releases_follow_fresh_readings: bool = True
    lost_intent_releases_nothing: bool = True
    gang_waits_for_its_commit: bool = True
    gang_writes_compare_its_record: bool = True
    gang_in_doubt_is_left_alone: bool = True
    cancelled_gang_is_refused_by_its_hosts: bool = True
