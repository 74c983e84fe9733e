"""libvirt and QEMU in earnest: what the fake cannot show."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import libvirt
import pytest

from ecompute.cluster.documents import Power
from ecompute.cluster.errors import HypervisorError, HypervisorUnavailable
from ecompute.dev.libvirtd import LibvirtProcess
from ecompute.hypervisor import sessions
from ecompute.hypervisor.connection import LibvirtHypervisor, answers
from ecompute.hypervisor.domain import DomainPlan
from ecompute.hypervisor.sessions import Opener

Eventually = Callable[..., None]
MakePlan = Callable[..., DomainPlan]

PROVIDER = "aa0c5a3e-6f0d-4a52-8a8e-0b4a3f0f2b22"
GOLDEN = Path(__file__).parents[2] / "golden" / "domain"


def has_said_up(plan: DomainPlan) -> bool:
    return plan.console_log.exists() and b"up\r\n" in plan.console_log.read_bytes()


def works(hypervisor: LibvirtHypervisor) -> bool:
    try:
        hypervisor.list()
    except HypervisorUnavailable:
        return False
    return True


def qemu_pid(process: LibvirtProcess, plan: DomainPlan) -> int:
    return int((process.directory / "run" / "qemu" / f"ec-{plan.uuid}.pid").read_text())


@contextmanager
def suspended(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_guest_boots_and_its_console_is_logged(
    hypervisor: LibvirtHypervisor, make_plan: MakePlan, eventually: Eventually
) -> None:
    plan = make_plan()
    hypervisor.define(plan)
    hypervisor.start(plan.uuid)
    eventually(lambda: has_said_up(plan), timeout_s=20)
    hypervisor.stop(plan.uuid)
    hypervisor.start(plan.uuid)  # the log of the first life is kept
    eventually(lambda: plan.console_log.read_bytes().count(b"up\r\n") == 2, timeout_s=20)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.xml")))
def test_libvirt_finds_the_golden_files_valid(libvirtd: LibvirtProcess, name: str) -> None:
    connection = libvirt.open(libvirtd.uri)
    text = (GOLDEN / name).read_text(encoding="utf-8").replace('type="kvm"', 'type="qemu"', 1)
    if 'type="kvm"' in (GOLDEN / name).read_text(encoding="utf-8"):
        text = text.replace("host-passthrough", "maximum")  # this machine may have no KVM
    connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    connection.close()


def test_a_guest_that_was_killed_has_crashed_and_starts_again(
    libvirtd: LibvirtProcess, hypervisor: LibvirtHypervisor, make_plan: MakePlan, eventually: Eventually
) -> None:
    plan = make_plan()
    told: list[str] = []
    hypervisor.define(plan)
    hypervisor.start(plan.uuid)
    hypervisor.on_change(told.append)
    eventually(lambda: told == [""])
    os.kill(qemu_pid(libvirtd, plan), signal.SIGKILL)
    eventually(lambda: hypervisor.list()[plan.uuid].power is Power.CRASHED)
    eventually(lambda: plan.uuid in told)
    hypervisor.start(plan.uuid)
    assert hypervisor.list()[plan.uuid].power is Power.ON


def test_stopping_a_hung_guest_ends_and_hides_no_other(
    libvirtd: LibvirtProcess, hypervisor: LibvirtHypervisor, make_plan: MakePlan
) -> None:
    hung, other = make_plan(), make_plan()
    for plan in (hung, other):
        hypervisor.define(plan)
        hypervisor.start(plan.uuid)
    with suspended(qemu_pid(libvirtd, hung)):
        begun = time.monotonic()
        stopping = threading.Thread(target=hypervisor.stop, args=(hung.uuid,))
        listing = threading.Thread(target=hypervisor.list)
        for thread in (stopping, listing):
            thread.start()
        slowest = 0.0
        while stopping.is_alive():
            asked = time.monotonic()
            found = hypervisor.get(other.uuid)
            assert found is not None
            assert found.power is Power.ON
            slowest = max(slowest, time.monotonic() - asked)
            stopping.join(0.05)
            assert time.monotonic() - begun < 30
        took_s = time.monotonic() - begun
        assert slowest < 1
        listing.join(5)
        assert not listing.is_alive()
    print(f"stopping a hung guest took {took_s:.1f} s; asking for another meanwhile at most {slowest:.3f} s")
    assert hypervisor.list()[hung.uuid].power is Power.OFF
    assert hypervisor.list()[other.uuid].power is Power.ON


def test_five_hung_guests_hold_up_no_sixth(
    libvirtd: LibvirtProcess, hypervisor: LibvirtHypervisor, make_plan: MakePlan
) -> None:
    plans = [make_plan() for _ in range(5)]
    for plan in plans:
        hypervisor.define(plan)
        hypervisor.start(plan.uuid)

    def hang(uuid: str) -> None:
        # Asks the guest's monitor, on a connection of the thread's own as every change does.
        with pytest.raises(HypervisorError):
            hypervisor._call("ask", lambda c: c.lookupByUUIDString(uuid).blockInfo("vda"), hypervisor._sessions.mine)

    with suspended(*(qemu_pid(libvirtd, plan) for plan in plans)):
        threads = [threading.Thread(target=hang, args=(plan.uuid,)) for plan in plans]
        for thread in threads:
            thread.start()
        sixth = make_plan()
        begun = time.monotonic()
        hypervisor.define(sixth)
        hypervisor.start(sixth.uuid)
        assert hypervisor.list()[sixth.uuid].power is Power.ON
        hypervisor.stop(sixth.uuid)
        hypervisor.undefine(sixth.uuid)
        assert time.monotonic() - begun < 5
        assert all(thread.is_alive() for thread in threads), "they were to hang all the while"
        # so that the asked threads end: their guests are taken away
        killed = [qemu_pid(libvirtd, plan) for plan in plans]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()


def connections() -> set[int]:
    """Return which connections this process holds open, of other tests too."""
    gc.collect()
    held = (item for item in gc.get_objects() if isinstance(item, libvirt.virConnect))
    return {id(item) for item in held if item._o is not None}


def test_guests_survive_a_crash_of_libvirtd_and_are_taken_back(
    libvirtd: LibvirtProcess, hypervisor: LibvirtHypervisor, make_plan: MakePlan, eventually: Eventually
) -> None:
    before = connections()
    plan = make_plan()
    hypervisor.define(plan)
    hypervisor.start(plan.uuid)
    eventually(lambda: has_said_up(plan), timeout_s=20)
    pid = qemu_pid(libvirtd, plan)
    told: list[str] = []
    hypervisor.on_change(told.append)
    for times in range(1, 4):
        libvirtd.kill()
        assert "qemu-system-x86" in libvirtd.pids
        libvirtd.start()
        eventually(lambda times=times: told.count("") == times + 1)
    assert hypervisor.list()[plan.uuid].power is Power.ON
    assert qemu_pid(libvirtd, plan) == pid
    assert len(connections() - before) <= 3  # events, inventory, this thread's


def test_a_libvirtd_that_does_not_answer_is_unavailable_and_comes_back(
    libvirtd: LibvirtProcess, hypervisor: LibvirtHypervisor
) -> None:
    hypervisor.list()
    with suspended(*libvirtd.pids["libvirtd"]):
        opener = Opener(libvirtd.uri, timeout_s=0.5)
        for says in ("within 0.5 s", "does not greet"):
            begun = time.monotonic()
            with pytest.raises(HypervisorUnavailable, match=says):
                opener.connect()
            assert time.monotonic() - begun < 2
        assert not answers(libvirtd.uri, timeout_s=0.5)
    assert answers(libvirtd.uri)
    assert hypervisor.list() == {}


def test_a_libvirtd_that_stands_still_ends_the_calls_that_wait_for_it(
    libvirtd: LibvirtProcess, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(sessions, "KEEPALIVE_INTERVAL_S", 1)
    hypervisor = LibvirtHypervisor(libvirtd.uri, PROVIDER)
    hypervisor.list()
    with suspended(*libvirtd.pids["libvirtd"]):
        begun = time.monotonic()
        with pytest.raises(HypervisorUnavailable, match="since"):
            hypervisor.list()
        assert time.monotonic() - begun < 25
    eventually(lambda: answers(libvirtd.uri))
    eventually(lambda: works(hypervisor))
    hypervisor.close()


def test_no_libvirtd_is_an_error_of_one_line_that_says_where(tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    with pytest.raises(HypervisorUnavailable) as caught:
        LibvirtHypervisor(uri, PROVIDER)
    assert str(tmp_path) in str(caught.value)
    assert "since" in str(caught.value)
    assert not answers(uri)


def test_what_listens_there_and_is_no_libvirtd_is_unavailable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        assert not answers(f"qemu+unix:///system?socket={tmp_path}/s", timeout_s=0.3)


def test_libvirt_prints_nothing_by_itself(
    hypervisor: LibvirtHypervisor, make_plan: MakePlan, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan()
    hypervisor.define(plan)
    plan.root_disk.unlink()
    with pytest.raises(HypervisorError):
        hypervisor.start(plan.uuid)
    with pytest.raises(HypervisorUnavailable):
        Opener("qemu+unix:///system?socket=/nowhere").connect()
    assert capfd.readouterr() == ("", "")


def test_a_thread_that_ended_leaves_no_connection_behind(
    libvirtd: LibvirtProcess, hypervisor: LibvirtHypervisor, make_plan: MakePlan, eventually: Eventually
) -> None:
    plan = make_plan()

    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    hypervisor.list()
    before = count()
    for has_released in (True, False):

        def work(has_released: bool = has_released) -> None:
            hypervisor.define(plan)
            if has_released:
                hypervisor.release_thread()

        for _ in range(3):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    eventually(lambda: count() <= before + 1)


def test_define_and_start_take_little_more_than_libvirt_itself(
    libvirtd: LibvirtProcess, hypervisor: LibvirtHypervisor, make_plan: MakePlan
) -> None:
    hypervisor.capabilities()  # libvirt asks QEMU once what it can do
    took = []
    for _ in range(3):
        plan = make_plan()
        begun = time.monotonic()
        hypervisor.define(plan)
        hypervisor.start(plan.uuid)
        took.append(time.monotonic() - begun)
    print(f"define and start: {min(took):.3f} to {max(took):.3f} s")
    assert min(took) < 3
