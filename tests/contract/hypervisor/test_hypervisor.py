"""What every `Hypervisor` does, whether it is libvirt or the fake."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ecompute.cluster.documents import Power
from ecompute.cluster.errors import HypervisorError, HypervisorUnavailable, InvalidInput
from ecompute.hypervisor import plug
from ecompute.hypervisor.api import Hypervisor
from ecompute.hypervisor.domain import DomainPlan, TapPlan

if TYPE_CHECKING:
    from .conftest import Host

Eventually = Callable[..., None]


def power(hypervisor: Hypervisor, uuid: str) -> Power | None:
    found = hypervisor.get(uuid)
    return None if found is None else found.power


def test_a_defined_domain_is_ours_and_off(hypervisor: Hypervisor, plan: DomainPlan) -> None:
    hypervisor.define(plan)
    found = hypervisor.get(plan.uuid)
    assert found is not None
    assert (found.power, found.is_ours, found.provider) == (Power.OFF, True, plan.provider)
    assert found.name == f"ec-{plan.uuid}"
    assert hypervisor.list() == {plan.uuid: replace(found, interfaces=None)}


def test_an_unknown_domain_is_none(hypervisor: Hypervisor) -> None:
    assert hypervisor.get(str(uuid.uuid4())) is None


def test_every_step_of_a_life_may_be_repeated(hypervisor: Hypervisor, plan: DomainPlan) -> None:
    for step, after in (
        (lambda: hypervisor.define(plan), Power.OFF),
        (lambda: hypervisor.start(plan.uuid), Power.ON),
        (lambda: hypervisor.define(plan), Power.ON),
        (lambda: hypervisor.stop(plan.uuid), Power.OFF),
        (lambda: hypervisor.undefine(plan.uuid), None),
        (lambda: hypervisor.stop(plan.uuid), None),
    ):
        for _ in range(2):
            step()
            assert power(hypervisor, plan.uuid) is after


def test_a_domain_that_is_not_defined_cannot_start(hypervisor: Hypervisor) -> None:
    with pytest.raises(HypervisorError, match="start"):
        hypervisor.start(str(uuid.uuid4()))


def test_a_domain_without_its_disk_cannot_start(hypervisor: Hypervisor, plan: DomainPlan) -> None:
    hypervisor.define(plan)
    plan.root_disk.unlink()
    with pytest.raises(HypervisorError, match=r"disk|storage") as caught:
        hypervisor.start(plan.uuid)
    assert "\n" not in str(caught.value)
    assert power(hypervisor, plan.uuid) is Power.OFF


def test_a_running_domain_is_not_undefined(hypervisor: Hypervisor, plan: DomainPlan) -> None:
    hypervisor.define(plan)
    hypervisor.start(plan.uuid)
    with pytest.raises(HypervisorError, match="stop it first"):
        hypervisor.undefine(plan.uuid)
    assert power(hypervisor, plan.uuid) is Power.ON


def test_a_plan_that_cannot_be_rendered_is_refused(hypervisor: Hypervisor, plan: DomainPlan) -> None:
    with pytest.raises(InvalidInput):
        hypervisor.define(replace(plan, vcpus=0))
    assert hypervisor.list() == {}


def test_a_plan_for_another_provider_is_refused(hypervisor: Hypervisor, plan: DomainPlan) -> None:
    with pytest.raises(HypervisorError, match="provider"):
        hypervisor.define(replace(plan, provider=str(uuid.uuid4())))
    assert hypervisor.list() == {}


def test_no_name_of_a_user_is_a_difficulty(hypervisor: Hypervisor, plan: DomainPlan) -> None:
    hypervisor.define(replace(plan, name="</domain>\x00\n../../x ]]> é \U0001f600", namespace="<&>"))
    found = hypervisor.get(plan.uuid)
    assert found is not None
    assert found.is_ours


@pytest.mark.parametrize("kind", ["add_foreign", "add_of_another"])
def test_a_foreign_domain_is_listed_and_never_touched(host: Host, plan: DomainPlan, kind: str) -> None:
    getattr(host, kind)(plan.uuid)
    hypervisor = host.hypervisor
    before = hypervisor.get(plan.uuid)
    assert before is not None
    assert not before.is_ours
    assert (before.provider is None) == (kind == "add_foreign")
    for touch in (
        lambda: hypervisor.define(plan),
        lambda: hypervisor.start(plan.uuid),
        lambda: hypervisor.stop(plan.uuid),
        lambda: hypervisor.undefine(plan.uuid),
        lambda: hypervisor.attach(plan.uuid, tap(0, "ecb000001")),
        lambda: hypervisor.detach(plan.uuid, "ect0"),
    ):
        with pytest.raises(HypervisorError, match="not ours"):
            touch()
    assert hypervisor.list() == {plan.uuid: replace(before, interfaces=None)}


def tap(number: int, bridge: str, model: str = "virtio") -> TapPlan:
    return TapPlan(f"ect{os.getpid() % 10**6}{number}", bridge, f"02:00:00:00:00:{number:02x}", 1450, model)


def interfaces(hypervisor: Hypervisor, uuid: str) -> set[tuple[str, str, str]] | None:
    found = hypervisor.get(uuid)
    return None if found is None else {(one.mac, one.tap, one.bridge) for one in found.interfaces or ()}


def as_found(*taps: TapPlan) -> set[tuple[str, str, str]]:
    return {(tap.mac, tap.tap, tap.bridge) for tap in taps}


@pytest.mark.parametrize("is_on", [False, True])
def test_a_domain_gets_interfaces_and_has_them_at_its_next_start_too(
    hypervisor: Hypervisor, plan: DomainPlan, bridge: str, is_on: bool
) -> None:
    taps = [tap(number, bridge) for number in range(3)]
    hypervisor.define(replace(plan, interfaces=(taps[0],)))
    assert interfaces(hypervisor, plan.uuid) == as_found(taps[0])
    if is_on:
        hypervisor.start(plan.uuid)
    for added in taps[1:]:
        for _ in range(2):
            hypervisor.attach(plan.uuid, added)
    assert interfaces(hypervisor, plan.uuid) == as_found(*taps)
    (hypervisor.stop if is_on else hypervisor.start)(plan.uuid)
    assert interfaces(hypervisor, plan.uuid) == as_found(*taps)


def test_an_interface_is_taken_from_a_domain_that_is_off(hypervisor: Hypervisor, plan: DomainPlan, bridge: str) -> None:
    kept, dropped = tap(0, bridge), tap(1, bridge)
    hypervisor.define(replace(plan, interfaces=(kept, dropped)))
    for _ in range(2):
        hypervisor.detach(plan.uuid, dropped.tap)
        assert interfaces(hypervisor, plan.uuid) == as_found(kept)


def test_a_guest_that_does_not_let_go_keeps_its_interface_until_it_is_off(
    host: Host, plan: DomainPlan, bridge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plug, "DETACH_TIMEOUT_S", 1.0)
    hypervisor = host.hypervisor
    hypervisor.define(replace(plan, interfaces=(tap(0, bridge),)))
    hypervisor.start(plan.uuid)
    host.cling(plan.uuid)
    for _ in range(2):
        with pytest.raises(HypervisorError, match="does not let go"):
            hypervisor.detach(plan.uuid, tap(0, bridge).tap)
    assert interfaces(hypervisor, plan.uuid) == as_found(tap(0, bridge))
    hypervisor.stop(plan.uuid)
    hypervisor.start(plan.uuid)
    assert interfaces(hypervisor, plan.uuid) == set()


def test_a_domain_that_is_not_there_gets_no_interface_and_loses_none(hypervisor: Hypervisor) -> None:
    with pytest.raises(HypervisorError, match="not defined"):
        hypervisor.attach(str(uuid.uuid4()), tap(0, "ecb000001"))
    hypervisor.detach(str(uuid.uuid4()), "ect0")


def test_an_interface_that_no_guest_can_have_is_refused(hypervisor: Hypervisor, plan: DomainPlan) -> None:
    hypervisor.define(plan)
    with pytest.raises(InvalidInput, match="none of e1000"):
        hypervisor.attach(plan.uuid, tap(0, "ecb000001", "<x/>"))
    assert interfaces(hypervisor, plan.uuid) == set()


def test_a_domain_removed_by_hand_is_gone(host: Host, plan: DomainPlan) -> None:
    host.hypervisor.define(plan)
    host.hypervisor.start(plan.uuid)
    host.remove_by_hand(plan.uuid)
    assert host.hypervisor.get(plan.uuid) is None
    host.hypervisor.stop(plan.uuid)
    host.hypervisor.undefine(plan.uuid)


def test_a_listener_is_first_told_to_look_at_everything_then_of_each_change(
    hypervisor: Hypervisor, plan: DomainPlan, eventually: Eventually
) -> None:
    told: list[str] = []
    hypervisor.on_change(told.append)
    eventually(lambda: told[:1] == [""])
    for step in (
        lambda: hypervisor.define(plan),
        lambda: hypervisor.start(plan.uuid),
        lambda: hypervisor.stop(plan.uuid),
        lambda: hypervisor.undefine(plan.uuid),
    ):
        before = len(told)
        step()
        eventually(lambda before=before: plan.uuid in told[before:])


def test_a_listener_that_fails_does_not_end_the_telling(
    hypervisor: Hypervisor, plan: DomainPlan, eventually: Eventually
) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("on purpose")

    told: list[str] = []
    hypervisor.on_change(fail)
    hypervisor.on_change(told.append)
    hypervisor.define(plan)
    eventually(lambda: plan.uuid in told)


def test_a_listener_may_ask_the_hypervisor(hypervisor: Hypervisor, plan: DomainPlan, eventually: Eventually) -> None:
    seen: list[object] = []
    hypervisor.on_change(lambda uuid: seen.append(hypervisor.get(uuid) if uuid else hypervisor.list()))
    hypervisor.define(plan)
    eventually(lambda: hypervisor.get(plan.uuid) in seen)


def test_after_an_outage_it_works_again_and_says_to_look_at_everything(
    host: Host, plan: DomainPlan, eventually: Eventually
) -> None:
    hypervisor = host.hypervisor
    told: list[str] = []
    hypervisor.on_change(told.append)
    hypervisor.define(plan)
    hypervisor.start(plan.uuid)
    eventually(lambda: plan.uuid in told)
    host.go_down()
    for call in (hypervisor.list, lambda: hypervisor.start(plan.uuid), lambda: hypervisor.get(plan.uuid)):
        with pytest.raises(HypervisorUnavailable):
            call()
    told.clear()
    host.come_back()
    eventually(lambda: "" in told)
    assert power(hypervisor, plan.uuid) is Power.ON
    hypervisor.stop(plan.uuid)
    eventually(lambda: plan.uuid in told)


def test_several_threads_change_several_domains(hypervisor: Hypervisor, plans: list[DomainPlan]) -> None:
    together = threading.Barrier(len(plans), timeout=30)

    def live(plan: DomainPlan) -> None:
        together.wait()
        hypervisor.define(plan)
        hypervisor.start(plan.uuid)
        hypervisor.release_thread()
        together.wait()
        assert {power(hypervisor, other.uuid) for other in plans} == {Power.ON}
        together.wait()
        hypervisor.stop(plan.uuid)
        hypervisor.undefine(plan.uuid)
        hypervisor.release_thread()

    with ThreadPoolExecutor(len(plans)) as pool:
        list(pool.map(live, plans))
    assert hypervisor.list() == {}


def test_after_closing_nothing_is_told_any_more(
    hypervisor: Hypervisor, plan: DomainPlan, eventually: Eventually
) -> None:
    told: list[str] = []
    hypervisor.on_change(told.append)
    eventually(lambda: told)
    hypervisor.close()
    told.clear()
    hypervisor.define(plan)
    assert told == []


def test_it_says_what_the_host_can_do(hypervisor: Hypervisor) -> None:
    found = hypervisor.capabilities()
    assert found.libvirt_version.count(".") == 2
    assert found.qemu_version.count(".") == 2
    assert found.cpu_model
    for accelerator in ("kvm", "tcg"):
        assert "fpu" in found.features_for(accelerator)
