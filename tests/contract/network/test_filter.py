"""What holds for every `Filter`: for nftables, each test in a network namespace of its own, and for the fake."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from ecompute.cluster.errors import NetworkError
from ecompute.network import guard
from ecompute.network import nft as kernel
from ecompute.network.egress import TABLES as HOST_TABLES
from ecompute.network.egress import HostRules
from ecompute.network.fake import FakeFilter
from ecompute.network.filter import Filter, FilterState, NftFilter
from ecompute.network.guard import TABLES
from ecompute.network.tables import Tables, objects
from ecompute.network.terms import Part, Tap

VNI = 0x1234
FIRST = Tap("ect00000000001", "02:00:00:00:00:01", ("10.50.0.1", "203.0.113.7", "fd00:50::1"))
SECOND = Tap("ect00000000002", "02:00:00:00:00:02", ("10.50.0.2",))
ANYTHING = Tap("ect00000000003", "02:00:00:00:00:03", None)
PART = Part(VNI, frozenset({FIRST}), frozenset({"192.0.2.2"}), ("10.50.0.254", "fd00:50::fe"))
OTHER = Part(VNI + 1, frozenset({SECOND}), frozenset({"192.0.2.2", "192.0.2.3"}))
HOST = HostRules(device="eth0").items()
PHYSICAL = Part(VNI + 2, frozenset({ANYTHING}), None)


@pytest.fixture(params=["fake", "nft"])
def rules(request: pytest.FixtureRequest) -> Filter:
    if request.param == "fake":
        return FakeFilter()
    request.getfixturevalue("own_namespace")
    return NftFilter()


@pytest.fixture
def nft_rules(own_namespace: None) -> NftFilter:
    return NftFilter()


def nft(command: str) -> str:
    return subprocess.run(["nft", command], check=True, capture_output=True, text=True).stdout


# --- every filter --------------------------------------------------------------------------------


def test_of_a_filter_that_is_not_here_nothing_is_found(rules: Filter) -> None:
    assert rules.state() is rules.state(PART) is FilterState.ABSENT
    assert rules.present() == rules.taps(VNI) == frozenset()
    rules.drop(VNI)


@pytest.mark.parametrize("part", [PART, OTHER, PHYSICAL, Part(VNI), Part(VNI, members=None)])
def test_what_was_put_is_whole(rules: Filter, part: Part) -> None:
    rules.put(part)
    assert rules.state() is rules.state(part) is FilterState.WHOLE
    assert rules.taps(part.vni) == {tap.name for tap in part.taps}


def test_another_part_than_the_one_that_is_there_is_not_whole(rules: Filter) -> None:
    rules.put(PART)
    for other in (
        OTHER,
        replace(PART, taps=frozenset()),
        replace(PART, taps=frozenset({FIRST, SECOND})),
        replace(PART, taps=frozenset({replace(FIRST, mac="02:00:00:00:00:09")})),
        replace(PART, taps=frozenset({replace(FIRST, addresses=("10.50.0.1",))})),
        replace(PART, members=frozenset()),
        replace(PART, gateways=()),
    ):
        assert rules.state(other) is FilterState.ALTERED
        assert rules.state() is rules.state(PART) is FilterState.WHOLE


def test_parts_come_and_go_one_by_one(rules: Filter) -> None:
    for part in (PART, OTHER, PHYSICAL):
        rules.put(part)
    assert rules.present() == {VNI, VNI + 1, VNI + 2}
    changed = replace(PART, taps=frozenset({FIRST, replace(SECOND, name="ect00000000009")}), members=frozenset())
    rules.put(changed)
    rules.drop(VNI + 1)
    assert rules.present() == {VNI, VNI + 2}
    assert rules.state(changed) is rules.state(PHYSICAL) is FilterState.WHOLE
    assert rules.state(OTHER) is FilterState.ALTERED
    rules.drop(VNI)
    rules.drop(VNI)
    assert rules.state(PHYSICAL) is FilterState.WHOLE
    rules.drop(VNI + 2)
    assert rules.state() is FilterState.ABSENT


def test_a_tap_without_a_port_keeps_its_rules_as_long_as_it_is_asked_for(rules: Filter) -> None:
    rules.put(PART)
    kept = replace(PART, taps=frozenset({SECOND}), kept=frozenset({FIRST.name}))
    rules.put(kept)
    assert rules.state(kept) is FilterState.WHOLE
    assert rules.taps(VNI) == {FIRST.name, SECOND.name}
    rules.put(replace(kept, kept=frozenset()))
    assert rules.taps(VNI) == {SECOND.name}


def test_nothing_is_repaired_where_nothing_was_put_or_everything_is_there(rules: Filter) -> None:
    assert not rules.repair()
    rules.put(PART)
    assert not rules.repair()


# --- nftables only -------------------------------------------------------------------------------


def test_another_daemon_knows_what_it_finds(nft_rules: NftFilter) -> None:
    for part in (PART, OTHER, PHYSICAL):
        nft_rules.put(part)
    again = NftFilter()
    assert again.state() is FilterState.WHOLE
    assert all(again.state(part) is FilterState.WHOLE for part in (PART, OTHER, PHYSICAL))


def test_a_daemon_that_was_started_anew_leaves_what_it_has_not_been_asked_for(nft_rules: NftFilter) -> None:
    for part in (PART, OTHER, PHYSICAL):
        nft_rules.put(part)
    again = NftFilter()
    again.put(replace(PART, taps=frozenset()))
    assert nft_rules.state(OTHER) is nft_rules.state(PHYSICAL) is FilterState.WHOLE
    again.drop(VNI)
    assert nft_rules.present() == {VNI + 1, VNI + 2}


def test_rules_of_an_older_release_are_replaced_without_a_moment_in_which_guests_pass_nothing(
    nft_rules: NftFilter,
) -> None:
    for part in (PART, OTHER):
        nft_rules.put(part)
    nft("insert rule bridge ecompute prerouting accept")
    nft("add chain bridge ecompute older { type filter hook forward priority 5; }")
    again = NftFilter()
    again.put(PART)
    assert again.state(OTHER) is FilterState.WHOLE


HARMS = [
    "delete table bridge ecompute",
    "delete table inet ecompute",
    "flush ruleset",
    "flush chain bridge ecompute input",
    "insert rule bridge ecompute input accept",
    "insert rule arp ecompute input accept",
    "add chain bridge ecompute other",
    "add chain bridge ecompute other; add rule bridge ecompute other jump from-guest4",
    "add chain inet ecompute input { policy drop; }",
    "add set bridge ecompute other { type ifname; }",
    "add counter inet ecompute other",
    f"delete element bridge ecompute taps {{ {FIRST.name} }}",
    f"add element bridge ecompute taps {{ ectffffffffff : goto n{VNI:06x}.{FIRST.name} }}",
    "add element bridge ecompute taps { ectffffffffff : accept }",
    f"insert rule bridge ecompute n{VNI:06x}.{FIRST.name} accept",
    f"flush chain bridge ecompute n{VNI:06x}.{FIRST.name}",
    f"add element inet ecompute n{VNI:06x}.members {{ 198.51.100.66 }}",
    f"delete element inet ecompute n{VNI:06x}.members {{ 192.0.2.2 }}",
    f"flush chain inet ecompute n{VNI:06x}.members",
    "flush chain inet ecompute vxlan",
]


@pytest.mark.parametrize("harm", HARMS)
def test_rules_that_somebody_altered_are_seen_and_put_back(nft_rules: NftFilter, harm: str) -> None:
    for part in (PART, OTHER, PHYSICAL):
        nft_rules.put(part)
    before = Tables(TABLES).found()
    nft(harm)
    assert nft_rules.state(PART) is not FilterState.WHOLE
    nft_rules.put(PART)
    assert all(nft_rules.state(part) is FilterState.WHOLE for part in (PART, OTHER, PHYSICAL))
    assert Tables(TABLES).found() == before


def test_what_others_of_this_process_change_in_their_tables_is_no_reason_to_list_ours(own_namespace: None) -> None:
    ledger = kernel.Ledger()
    tables, others = Tables(TABLES, ledger), kernel.Kept(HOST_TABLES, ledger)
    tables.become(objects(guard.base([])))
    others.put(HOST)
    known = tables.found()
    others.put(HostRules(device="eth1").items())
    assert tables.found() is known
    tables.become(objects(guard.base([]) + guard.of_network(PHYSICAL)))
    assert others.are(HostRules(device="eth1").items())


@pytest.mark.parametrize("harm", HARMS)
def test_what_somebody_alters_between_changes_of_ours_is_seen(own_namespace: None, harm: str) -> None:
    ledger = kernel.Ledger()
    rules, others = NftFilter(ledger), kernel.Kept(HOST_TABLES, ledger)
    for part in (PART, OTHER, PHYSICAL):
        rules.put(part)
    others.put(HOST)
    nft(harm)
    others.put(HOST)
    assert rules.state(PART) is not FilterState.WHOLE


def test_a_table_of_anothers_that_is_deleted_between_changes_of_ours_is_missed(own_namespace: None) -> None:
    ledger = kernel.Ledger()
    rules, others = NftFilter(ledger), kernel.Kept(HOST_TABLES, ledger)
    rules.put(PART)
    others.put(HOST)
    nft("delete table inet ecompute_gateway")
    rules.put(OTHER)
    assert not others.are(HOST)


def test_a_change_that_was_refused_leaves_no_trace(own_namespace: None) -> None:
    ledger = kernel.Ledger()
    before = kernel.generation()
    with pytest.raises(NetworkError):
        ledger.change(kernel.as_script([{"delete": {"table": {"family": "inet", "name": "ecompute"}}}]), TABLES)
    nft("add table inet other")
    assert not ledger.are_untouched([("ip", "another")], before, kernel.generation())


def test_all_that_was_put_is_repaired_at_once(nft_rules: NftFilter) -> None:
    for part in (PART, OTHER):
        nft_rules.put(part)
    nft("flush ruleset")
    assert nft_rules.repair()
    assert nft_rules.state(PART) is nft_rules.state(OTHER) is FilterState.WHOLE
    nft(f"flush chain bridge ecompute n{VNI + 1:06x}.{SECOND.name}")
    assert nft_rules.repair()
    assert nft_rules.state(OTHER) is FilterState.WHOLE


def test_what_another_network_lost_is_put_back_too(nft_rules: NftFilter) -> None:
    for part in (PART, OTHER):
        nft_rules.put(part)
    nft(f"flush chain bridge ecompute n{VNI + 1:06x}.{SECOND.name}")
    assert nft_rules.state(PART) is FilterState.WHOLE
    assert nft_rules.state(OTHER) is FilterState.ALTERED


def test_while_nothing_changes_nothing_is_listed_and_a_change_lists_nothing(
    nft_rules: NftFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    nft_rules.put(PART)

    def refuse(table: object) -> str:
        raise AssertionError("the rules were listed")

    monkeypatch.setattr(kernel, "listing", refuse)
    for part in (PART, OTHER, PHYSICAL):
        nft_rules.put(part)
        assert nft_rules.state(part) is FilterState.WHOLE
    nft_rules.drop(OTHER.vni)


def test_what_others_change_meanwhile_is_looked_at_again(nft_rules: NftFilter, monkeypatch: pytest.MonkeyPatch) -> None:
    nft_rules.put(PART)
    change = kernel.change

    def beside(script: str) -> None:
        change(script)
        nft("flush chain bridge ecompute input")

    monkeypatch.setattr(kernel, "change", beside)
    nft_rules.put(OTHER)
    assert nft_rules.state(OTHER) is FilterState.ALTERED


def test_a_release_that_prints_in_another_way_is_believed_what_it_printed_first(
    nft_rules: NftFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = kernel.listing

    def otherwise(table: kernel.Table) -> str | None:
        listed = listing(table)
        return None if listed is None else listed.replace('"nd-redirect"', '"137"').replace('"goto"', '"goTo"')

    monkeypatch.setattr(kernel, "listing", otherwise)
    for part in (PART, OTHER):
        nft_rules.put(part)
        assert nft_rules.state(part) is FilterState.WHOLE
    nft("add table inet firewall")
    assert nft_rules.state(PART) is nft_rules.state(OTHER) is FilterState.WHOLE
    nft(f"insert rule bridge ecompute n{VNI:06x}.{FIRST.name} accept")
    assert nft_rules.state(PART) is FilterState.ALTERED
    nft_rules.put(PART)
    assert nft_rules.state(PART) is nft_rules.state(OTHER) is FilterState.WHOLE


def test_other_tables_stay_as_they_are(nft_rules: NftFilter) -> None:
    nft("add table inet ecompute2; add chain inet ecompute2 c; add rule inet ecompute2 c tcp dport 22 accept")
    nft("add table ip ecompute; add table bridge other")
    before = nft("list ruleset")
    for part in (PART, PART, OTHER):
        nft_rules.put(part)
    for vni in (VNI, VNI + 1, VNI + 1):
        nft_rules.drop(vni)
    assert nft("list ruleset") == before


def test_without_nft_it_says_which_package_to_install(
    nft_rules: NftFilter, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr("ecompute.network.nft.PROGRAM", f"{tmp_path}/nft")
    with pytest.raises(NetworkError, match="nft is missing; install the package nftables"):
        nft_rules.put(PART)
