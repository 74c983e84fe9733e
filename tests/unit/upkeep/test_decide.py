"""What upkeep decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ecompute.cluster.documents import (
    Assignment,
    Instance,
    Interface,
    Leaving,
    Resources,
    Role,
    Seen,
    Spec,
    State,
)
from ecompute.cluster.upkeep.decide import (
    GRACE_S,
    Act,
    Belonging,
    Held,
    HostLook,
    Look,
    Owned,
    Question,
    Unlike,
    finish,
    keep,
    leaks,
    releases,
    unlike,
)

SPEC = Spec(resources=Resources(vcpus=1, memory_mb=64, disk_gb=1), image="http://image/")
OURS = "ECOMPUTE_INSTANCE"


def instance(state: State, *, generation: int = 1, epoch: int = 1) -> Instance:
    return Instance(
        uuid="u",
        namespace="system",
        name="web",
        state=state,
        generation=generation,
        epoch=epoch,
        provider="p",
        spec=SPEC,
        created_at="then",
    )


def assignment(role: Role, *, generation: int = 1, epoch: int = 1) -> Assignment:
    return Assignment(
        uuid="u", namespace="system", name="web", role=role, generation=generation, epoch=epoch, spec=SPEC
    )


def seen(state: State, *, is_gone: bool, generation: int = 1, epoch: int = 1, error: str | None = None) -> Seen:
    return Seen(
        uuid="u", generation=generation, epoch=epoch, state=state, is_gone=is_gone, error=error, reported_at="then"
    )


DELETING = instance(State.DELETING, generation=2)
ABSENT = assignment(Role.ABSENT, generation=2)


numbers = st.integers(1, 4)


@given(
    st.lists(numbers, max_size=3),
    st.sampled_from(State),
    st.sampled_from(State),
    numbers,
    numbers,
    numbers,
    st.none() | st.just("it does not let go"),
)
def test_an_interface_is_let_go_only_when_its_host_has_reached_an_order_without_it(
    asked: list[int], wanted: State, state: State, generation: int, epoch: int, reached: int, error: str | None
) -> None:
    leaving = tuple(
        Leaving(interface=Interface(uuid=f"{n}", network_uuid="n", vni=1, mac="m", addresses=(), mtu=1), generation=at)
        for n, at in enumerate(asked)
    )
    known = structs.replace(instance(wanted, generation=generation, epoch=epoch), leaving=leaving)
    plan = finish(
        known,
        assignment(Role.RUN, generation=generation, epoch=epoch),
        seen(state, is_gone=False, generation=reached, epoch=2, error=error),
    )
    is_so = wanted is State.INITIAL and state is State.CREATED and error is None and epoch == 2
    left = tuple(item.interface for item in leaving if is_so and item.generation <= reached)
    assert plan.interfaces == left
    assert (plan.act is Act.LET_GO) == bool(left)


def test_what_its_host_reports_gone_is_released_and_then_deleted() -> None:
    gone = seen(State.DELETED, is_gone=True, generation=2)
    assert finish(DELETING, ABSENT, gone).act is Act.RELEASE_AND_DELETE


@pytest.mark.parametrize(
    "report",
    [
        None,
        seen(State.DELETING, is_gone=False, generation=2),
        seen(State.DELETED, is_gone=True, generation=1),
        seen(State.DELETED, is_gone=True, generation=2, epoch=0),
    ],
)
def test_nothing_is_released_before_its_host_says_gone_of_this_epoch_and_generation(report: Seen | None) -> None:
    assert finish(DELETING, ABSENT, report).act is Act.NOTHING


def test_a_failed_build_is_marked_before_its_claim_is_released() -> None:
    failed = seen(State.ERROR, is_gone=True, error="no image")
    plan = finish(instance(State.INITIAL), assignment(Role.RUN), failed)
    assert (plan.act, plan.error) == (Act.MARK_FAILED, "no image")


def test_the_release_after_the_mark_is_done_by_whoever_comes_next() -> None:
    failed = seen(State.ERROR, is_gone=True, error="no image")
    assert finish(instance(State.ERROR), assignment(Role.ABSENT), failed).act is Act.RELEASE


def test_a_lost_guest_keeps_its_claim() -> None:
    lost = seen(State.ERROR, is_gone=False, error="its disk is gone")
    assert finish(instance(State.INITIAL), assignment(Role.RUN), lost).act is Act.NOTHING


def test_a_deleted_assignment_of_a_deleting_instance_is_written_again() -> None:
    assert finish(DELETING, None, None).act is Act.ORDER_REMOVAL
    assert finish(DELETING, None, seen(State.DELETED, is_gone=True, generation=2)).act is Act.RELEASE_AND_DELETE


def test_what_is_left_of_an_instance_whose_key_was_deleted_is_finished() -> None:
    assert finish(None, ABSENT, seen(State.DELETED, is_gone=True)).act is Act.RELEASE_AND_DELETE
    assert finish(None, assignment(Role.RUN), seen(State.ERROR, is_gone=True)).act is Act.RELEASE_AND_DELETE
    assert finish(None, assignment(Role.RUN), seen(State.CREATED, is_gone=False)).act is Act.NOTHING


def test_an_assignment_of_another_epoch_is_left_alone() -> None:
    gone = seen(State.DELETED, is_gone=True, generation=2, epoch=2)
    assert finish(instance(State.DELETING, epoch=2), ABSENT, gone).act is Act.NOTHING


def look(at_s: float, **what: object) -> Look:
    return Look(began_s=at_s, ended_s=at_s + 1, **what)  # type: ignore[arg-type]


LEAKED = {"u": Held(frozenset({"p"}), OURS)}
ALIVE = {"p": HostLook(is_alive=True)}
LATER = GRACE_S + 1


def test_a_claim_that_nobody_holds_is_released_after_its_host_has_answered() -> None:
    found = leaks(look(0, allocations=LEAKED, hosts=ALIVE), look(LATER, allocations=LEAKED, hosts=ALIVE))
    assert found.questions == (Question("p", "u"),)
    assert releases(found, frozenset(), frozenset()) == ()
    assert releases(found, frozenset(), frozenset(found.questions)) == ("u",)


def test_one_look_or_two_too_near_are_not_enough() -> None:
    assert leaks(None, look(0, allocations=LEAKED, hosts=ALIVE)).questions == ()
    near = look(GRACE_S, allocations=LEAKED, hosts=ALIVE)
    assert leaks(look(0, allocations=LEAKED, hosts=ALIVE), near).questions == ()


def test_a_stale_intent_is_deleted_before_its_claim_is_asked_about() -> None:
    before = look(0, allocations=LEAKED, hosts=ALIVE, intents={"u": 7})
    found = leaks(before, look(LATER, allocations=LEAKED, hosts=ALIVE, intents={"u": 7}))
    assert found.intents == {"u": 7}
    assert releases(found, frozenset(), frozenset(found.questions)) == ()
    assert releases(found, frozenset({"u"}), frozenset(found.questions)) == ("u",)


def test_an_intent_that_was_refreshed_is_left() -> None:
    before = look(0, allocations=LEAKED, hosts=ALIVE, intents={"u": 7})
    found = leaks(before, look(LATER, allocations=LEAKED, hosts=ALIVE, intents={"u": 8}))
    assert not found.intents and not found.questions


def test_a_stale_intent_beside_an_instance_leaves_the_claim_alone() -> None:
    what = {"allocations": LEAKED, "hosts": ALIVE, "intents": {"u": 7}, "instances": frozenset({"u"})}
    found = leaks(look(0, **what), look(LATER, **what))
    assert found.intents == {"u": 7} and found.questions == ()


@pytest.mark.parametrize("host", [HostLook(), HostLook(is_alive=True, is_on_hold=True)])
def test_claims_on_a_host_that_cannot_answer_wait_for_it(host: HostLook) -> None:
    found = leaks(look(0, allocations=LEAKED), look(LATER, allocations=LEAKED, hosts={"p": host}))
    assert found.questions == () and found.stranded == ("u",)


def test_a_host_that_reports_a_guest_is_not_asked() -> None:
    hosts = {"p": HostLook(is_alive=True, guests=frozenset({"u"}))}
    found = leaks(look(0, allocations=LEAKED, hosts=hosts), look(LATER, allocations=LEAKED, hosts=hosts))
    assert found.questions == () and found.stranded == ()


def test_claims_of_others_are_reported_and_never_touched() -> None:
    foreign = {"x": Held(frozenset({"p"}), "INSTANCE")}
    found = leaks(look(0, allocations=foreign, hosts=ALIVE), look(LATER, allocations=foreign, hosts=ALIVE))
    assert found.foreign == ("x",) and found.questions == ()


def test_the_earlier_look_is_kept_until_it_is_old_enough() -> None:
    first, near, later = look(0), look(30), look(LATER)
    assert keep(first, near) is first
    assert keep(first, later) is later
    assert keep(None, near) is near


def test_an_instance_whose_claim_is_gone_is_reported() -> None:
    what = {"instances": frozenset({"u"}), "holders": frozenset({"u"})}
    assert leaks(look(0, **what), look(LATER, **what)).unbacked == ("u",)
    assert leaks(look(0, **what), look(LATER, allocations=LEAKED, **what)).unbacked == ()


def test_an_address_whose_instance_is_nowhere_is_given_back() -> None:
    what = {"owned": {"/networks/n/addresses/10.0.0.2": Owned("u", 7)}}
    assert leaks(look(0, **what), look(LATER, **what)).orphans == {"/networks/n/addresses/10.0.0.2": 7}
    assert not leaks(look(0, **what), look(LATER, allocations=LEAKED, **what)).orphans
    hosts = {"p": HostLook(guests=frozenset({"u"}))}
    assert not leaks(look(0, hosts=hosts, **what), look(LATER, **what)).orphans


def test_a_look_that_is_believed_sooner_is_believed_sooner() -> None:
    before, near = look(0, allocations=LEAKED, hosts=ALIVE), look(GRACE_S / 2, allocations=LEAKED, hosts=ALIVE)
    assert leaks(before, near).questions == ()
    assert leaks(before, near, grace_s=1.0).questions != ()
    assert keep(before, near, grace_s=1.0) is near


@pytest.mark.parametrize("what", ["hostless", "unregistered", "unwanted", "overfull"])
def test_what_is_only_told_is_told_when_two_looks_agree(what: str) -> None:
    thing = ("p", "u") if what in ("unwanted", "overfull") else "p"
    seen_, unseen = look(0, **{what: frozenset({thing})}), look(0)
    now = look(LATER, **{what: frozenset({thing})})
    assert getattr(leaks(seen_, now), what) == (thing,)
    assert getattr(leaks(unseen, now), what) == ()


_rows = st.dictionaries(
    st.sampled_from(["p", "q"]), st.dictionaries(st.sampled_from(["VCPU", "DISK_GB"]), st.integers(1, 3), min_size=1)
)


@given(_rows, _rows)
def test_an_allocation_is_short_of_its_claim_just_when_it_could_have_all_of_it_besides(
    claim: dict[str, dict[str, int]], held: dict[str, dict[str, int]]
) -> None:
    def amount(rows: dict[str, dict[str, int]], provider: str, name: str) -> int:
        return rows.get(provider, {}).get(name, 0)

    more = [
        amount(claim, provider, name) - amount(held, provider, name)
        for provider in ("p", "q")
        for name in ("VCPU", "DISK_GB")
    ]
    wanted = None if not any(more) else Unlike.SHORT if min(more) >= 0 else Unlike.BEYOND
    assert unlike(claim, held) is wanted


def test_how_an_allocation_differs_has_to_be_the_same_in_both_looks() -> None:
    first = Look(0.0, 0.0, unlike={"u": Unlike.SHORT, "v": Unlike.SHORT, "w": Unlike.BEYOND})
    second = Look(GRACE_S, GRACE_S, unlike={"u": Unlike.SHORT, "v": Unlike.BEYOND, "w": Unlike.BEYOND})
    found = leaks(first, second)
    assert (found.short, found.beyond) == (("u",), ("w",))


def test_a_key_whose_owner_is_missing_is_left_over_when_nobody_wrote_it_between_two_looks() -> None:
    first = Look(0.0, 0.0, ownerless={"/a": Belonging("/o", 1), "/b": Belonging("/o", 2)})
    second = Look(GRACE_S, GRACE_S, ownerless={"/a": Belonging("/o", 1), "/b": Belonging("/o", 3)})
    assert leaks(first, second).ownerless == {"/a": Belonging("/o", 1)}


def test_a_member_without_a_port_goes_when_two_looks_saw_it_and_nobody_wrote_it_between() -> None:
    before = Look(began_s=0, ended_s=0, vacant={"/networks/n/hosts/p": 5, "/networks/n/hosts/q": 6})
    now = Look(began_s=GRACE_S, ended_s=GRACE_S, vacant={"/networks/n/hosts/p": 5, "/networks/n/hosts/q": 7})
    assert leaks(before, now).vacant == {"/networks/n/hosts/p": 5}
    assert leaks(None, now).vacant == {}
