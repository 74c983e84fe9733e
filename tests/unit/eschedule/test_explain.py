"""Why not: the reasons, the nearest miss, and what tenants see of them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.placement import candidates_query
from eschedule.scheduler.asked import Part, asked
from eschedule.scheduler.capacity import capacity
from eschedule.scheduler.explain import Explanation, Host, Kind, explain, lacks
from eschedule.scheduler.fit import Provider, Stock, TooMany, Tree, first_way, ways

AGGREGATE = "11111111-2222-4333-8444-555555555555"
ROOT = "aaaaaaaa-2222-4333-8444-555555555555"


def host(name: str, *, traits: frozenset[str] = frozenset(), barred: str | None = None, **stocks: Stock) -> Host:
    return Host(name, name, Tree(name, (Provider(name, None, stocks, traits),)), barred)


def why(query: str, *hosts: Host, members: dict[str, frozenset[str]] | None = None) -> Explanation:
    return explain(asked(candidates_query(query)), hosts, members or {})


def test_a_query_is_taken_apart() -> None:
    found = asked(
        candidates_query(
            "resources=VCPU:1&required=CUSTOM_A,!CUSTOM_B&required=in:CUSTOM_C,CUSTOM_D"
            f"&member_of=!{AGGREGATE}&resources_X=CUSTOM_E:2&in_tree_X={ROOT}&group_policy=isolate"
            "&root_required=CUSTOM_F,!CUSTOM_G&same_subtree=_X"
        )
    )
    assert found.parts == (
        Part(
            "",
            {"VCPU": 1},
            required=(frozenset({"CUSTOM_A"}), frozenset({"CUSTOM_C", "CUSTOM_D"})),
            forbidden=frozenset({"CUSTOM_B"}),
            not_member_of=(AGGREGATE,),
        ),
        Part("_X", {"CUSTOM_E": 2}, in_tree=ROOT),
    )
    assert found.is_isolated and found.same_subtree == (frozenset({"_X"}),)
    assert (found.root_required, found.root_forbidden) == (frozenset({"CUSTOM_F"}), frozenset({"CUSTOM_G"}))
    assert found.conditions == {AGGREGATE}
    assert found.classes == {"VCPU", "CUSTOM_E"} and "CUSTOM_G" in found.traits


def test_a_capacity_is_told_with_its_sum() -> None:
    [verdict] = why("resources=VCPU:2", host("host-1", VCPU=Stock(8, used=7))).verdicts
    assert verdict.lacks == "VCPU: 7 of 8 used, 2 asked"


@pytest.mark.parametrize(
    ("asked_for", "stock", "text", "kind"),
    [
        ("VCPU:8", Stock(16, max_unit=4), "VCPU: at most 4 at once, 8 asked", Kind.UNIT),
        ("VCPU:1", Stock(16, min_unit=2), "VCPU: at least 2 at once, 1 asked", Kind.UNIT),
        ("VCPU:3", Stock(16, step_size=2), "VCPU: in steps of 2, 3 asked", Kind.UNIT),
        ("CUSTOM_FPGA:1", Stock(16), "has no CUSTOM_FPGA", Kind.CLASS),
        ("VCPU:2&required=CUSTOM_X", Stock(16), "lacks trait CUSTOM_X", Kind.TRAIT),
        (
            "VCPU:2&required=in:CUSTOM_X,CUSTOM_W",
            Stock(16),
            "has none of the traits CUSTOM_W, CUSTOM_X",
            Kind.TRAIT,
        ),
        ("VCPU:2&required=!CUSTOM_Y", Stock(16), "has the forbidden trait CUSTOM_Y", Kind.FORBIDDEN),
        ("VCPU:2&root_required=CUSTOM_X", Stock(16), "lacks trait CUSTOM_X", Kind.TRAIT),
        (f"VCPU:2&member_of={AGGREGATE}", Stock(16), f"is not in aggregate {AGGREGATE}", Kind.AGGREGATE),
        (f"VCPU:2&in_tree={ROOT}", Stock(16), f"is not in the tree of {ROOT}", Kind.TREE),
    ],
)
def test_each_lack_has_its_words(asked_for: str, stock: Stock, text: str, kind: Kind) -> None:
    [verdict] = why(f"resources={asked_for}", host("host-1", traits=frozenset({"CUSTOM_Y"}), VCPU=stock)).verdicts
    assert [(reason.text, reason.kind) for reason in verdict.reasons] == [(text, kind)]


def test_a_forbidden_aggregate_is_named() -> None:
    members = {AGGREGATE: frozenset({"host-1"})}
    query = f"resources=VCPU:1&member_of=!{AGGREGATE}"
    [verdict] = why(query, host("host-1", VCPU=Stock(4)), members=members).verdicts
    assert verdict.lacks == f"is in the forbidden aggregate {AGGREGATE}"


def test_a_host_that_takes_nothing_new_says_why_and_what_it_lacks_besides() -> None:
    barred = host("host-1", barred="is draining: a new disk", VCPU=Stock(8, used=8))
    [verdict] = why("resources=VCPU:1", barred).verdicts
    assert verdict.lacks == "it is draining: a new disk; VCPU: 8 of 8 used, 1 asked"


def test_a_group_with_a_suffix_says_what_its_nearest_provider_lacks() -> None:
    tree = Tree(
        "host-1",
        (
            Provider("host-1", None, {"VCPU": Stock(8)}),
            Provider("nic-1", "host-1", {"CUSTOM_NIC": Stock(4, used=3)}),
            Provider("nic-2", "host-1", {"CUSTOM_NIC": Stock(4, used=4)}),
        ),
    )
    [verdict] = why("resources=VCPU:1&resources_NIC=CUSTOM_NIC:2", Host("host-1", "host-1", tree)).verdicts
    assert verdict.lacks == "group _NIC: CUSTOM_NIC: 3 of 4 used, 2 asked"


def test_what_only_fails_together_claims_no_more_than_that() -> None:
    tree = Tree("host-1", (Provider("host-1", None, {"VCPU": Stock(3)}),))
    query = "resources_A=VCPU:2&resources_B=VCPU:2&group_policy=none"
    [verdict] = why(query, Host("host-1", "host-1", tree)).verdicts
    assert [reason.kind for reason in verdict.reasons] == [Kind.TOGETHER]


def test_too_many_ways_are_not_looked_at() -> None:
    children = tuple(Provider(f"c{n}", "root", {"CUSTOM_A": Stock(1)}) for n in range(30))
    tree = Tree("root", (Provider("root", None, {}), *children))
    query = asked(candidates_query("group_policy=isolate&" + "&".join(f"resources_{n}=CUSTOM_A:1" for n in range(31))))
    with pytest.raises(TooMany):
        list(ways(tree, query, {}))
    [reason] = lacks(query, tree, {})
    assert reason.kind is Kind.TOGETHER and "not known" in reason.text


def test_the_nearest_miss_is_the_host_that_lacks_least() -> None:
    hosts = [
        host("host-1", VCPU=Stock(8, used=8)),
        host("host-2", VCPU=Stock(8, used=0), barred="is draining"),
        host("host-3", VCPU=Stock(8, used=7)),
    ]
    found = why("resources=VCPU:2", *hosts)
    assert found.nearest_miss == "host-3 lacks 1 VCPU"
    assert found.nearest_miss_for_tenant == "on the nearest host, not enough VCPU is free"
    assert why("resources=VCPU:2").nearest_miss == "no host has registered"


def test_a_hosts_group_can_keep_it_out() -> None:
    hosts = [host("host-1", VCPU=Stock(8)), host("host-2", VCPU=Stock(8))]
    query = asked(candidates_query("resources=VCPU:1"))
    found = explain(query, hosts, {}, excluded=frozenset({"host-1"}), group_name="group web (anti-affinity)")
    assert [verdict.lacks for verdict in found.verdicts] == ["group web (anti-affinity) does not allow it there", ""]
    only = explain(query, hosts, {}, only=frozenset({"host-1"}))
    assert [verdict.is_able for verdict in only.verdicts] == [True, False]


def test_tenants_see_counts_and_no_hosts() -> None:
    hosts = [host(f"secret-{n}", VCPU=Stock(8, used=n)) for n in range(1, 9)]
    counts = why(
        "resources=VCPU:8", *hosts, host("secret-x", VCPU=Stock(8), barred="is draining: ask Bob")
    ).for_tenant()
    assert [(count.reason, count.hosts) for count in counts] == [
        ("not enough VCPU is free", 8),
        ("takes nothing new now", 1),
    ]
    assert "secret" not in str(counts) and "Bob" not in str(counts)


def test_capacity_counts_what_fits_in_all_and_on_the_best() -> None:
    hosts = [
        host("host-1", VCPU=Stock(8, used=1), MEMORY_MB=Stock(4096)),
        host("host-2", VCPU=Stock(8), MEMORY_MB=Stock(1024)),
        host("host-3", VCPU=Stock(80), MEMORY_MB=Stock(80_000), barred="is lost"),
    ]
    fits = capacity(asked(candidates_query("resources=VCPU:2,MEMORY_MB:512")), hosts, {})
    assert (fits.total, fits.on_best, fits.hosts_with_room) == (5, 3, 2)
    assert fits.best is not None and fits.best.name == "host-1"


def test_what_hosts_share_is_counted_once() -> None:
    disk = Provider("nfs", None, {"DISK_GB": Stock(3)})
    hosts = [
        Host(name, name, Tree(name, (Provider(name, None, {"VCPU": Stock(8)}),), (disk,))) for name in ("h1", "h2")
    ]
    fits = capacity(asked(candidates_query("resources=VCPU:1,DISK_GB:1")), hosts, {})
    assert (fits.total, fits.on_best) == (3, 3)


stocks = st.builds(
    Stock,
    capacity=st.integers(0, 16),
    used=st.integers(0, 16),
    min_unit=st.integers(1, 3),
    max_unit=st.integers(1, 16),
    step_size=st.integers(1, 3),
)
traits = st.frozensets(st.sampled_from(["CUSTOM_A", "CUSTOM_B"]))
hosts_ = st.lists(
    st.builds(
        lambda n, vcpus, memory, t, barred: host(f"host-{n}", traits=t, barred=barred, VCPU=vcpus, MEMORY_MB=memory),
        st.integers(0, 10_000),
        stocks,
        stocks,
        traits,
        st.sampled_from([None, None, "is draining"]),
    ),
    max_size=6,
    unique_by=lambda h: h.name,
)
queries = st.builds(
    lambda vcpus, memory, extra: f"resources=VCPU:{vcpus},MEMORY_MB:{memory}{extra}",
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from(["", "&required=CUSTOM_A", "&required=!CUSTOM_B", "&required=in:CUSTOM_A,CUSTOM_B"]),
)


@given(queries, hosts_, st.integers())
def test_the_order_of_hosts_changes_nothing(query: str, hosts: list[Host], seed: int) -> None:
    shuffled = list(hosts)
    random.Random(seed).shuffle(shuffled)
    one, other = why(query, *hosts), why(query, *shuffled)
    assert one.nearest_miss == other.nearest_miss or one.able
    assert one.for_tenant() == other.for_tenant()
    assert {v.provider for v in one.able} == {v.provider for v in other.able}


@given(queries, hosts_)
def test_able_is_who_can_and_each_reason_stands_alone(query: str, hosts: list[Host]) -> None:
    wanted = asked(candidates_query(query))
    for verdict, one in zip(why(query, *hosts).verdicts, hosts, strict=True):
        assert one.tree is not None
        can = one.barred is None and first_way(one.tree, wanted, {}) is not None
        assert verdict.is_able is can


@given(queries, hosts_)
def test_what_capacity_says_to_fit_fits_and_one_more_does_not(query: str, hosts: list[Host]) -> None:
    wanted = asked(candidates_query(query))
    fits = capacity(wanted, hosts, {})
    for one in hosts:
        if one.barred is not None or one.tree is None:
            assert fits.by_host[one.provider] == 0
            continue
        tree, n = one.tree, 0
        while (way := first_way(tree, wanted, {})) is not None:
            [root] = tree.providers
            taken = {
                name: replace(s, used=s.used + way.rows.get((root.uuid, name), 0)) for name, s in root.stocks.items()
            }
            tree, n = Tree(tree.root, (replace(root, stocks=taken),)), n + 1
        assert fits.by_host[one.provider] == n
    assert fits.total == sum(fits.by_host.values())
