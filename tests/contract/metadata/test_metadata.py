"""Guests ask the real service, in a network's namespace, as cloud-init and as people would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from place import KEYS, NETWORK_UUID, USER_DATA, VNI, Net, Place, wait_for

from ecompute.cluster.desks import socket_in
from ecompute.dev.hosts import ip
from ecompute.guest import handing, told
from ecompute.network.metadata import RETRY_S, HostMetadata
from ecompute.network.metadata_sockets import ADDRESS6

ID = "/latest/meta-data/instance-id"
Make = Callable[..., HostMetadata]


def serve(metadata: HostMetadata, net: Net, *, is_scan: bool = False) -> None:
    metadata.serve(VNI, net.netns, net.callers(), is_scan=is_scan)
    wait_for(lambda: is_answered(net.a), what="the service answers")


def is_answered(place: Place) -> bool:
    return place.get(ID)[0] == 200


def uuid_told(place: Place, *options: str) -> str:
    status, body = place.get("/openstack/latest/meta_data.json", *options)
    assert status == 200
    return str(json.loads(body)["uuid"])


def marks(net: Net) -> dict[int, str]:
    """Which sockets of which networks are served."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way,
        socket_in(told.directory_of(net.state), handing.SOCKET) as name,
    ):
        way.connect(name)
        way.send(handing.encode(handing.List()))
        return handing.decode_answer(way.recv(handing.LIMIT_BYTES)).networks


def pid_of(net: Net) -> int:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way,
        socket_in(told.directory_of(net.state), handing.SOCKET) as name,
    ):
        way.connect(name)
        return int.from_bytes(way.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)


def has_ended(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" in status.read_text()  # whoever is to take note of it has not yet
    except FileNotFoundError:
        return True


def test_cloud_init_reads_both_trees(net: Net, make_metadata: Make, cloud_init: Path, tmp_path: Path) -> None:
    serve(make_metadata(), net)
    done = net.a.run(
        sys.executable,
        Path(__file__).with_name("read_over_http.py"),
        tmp_path / "cloud-init",
        env={"PYTHONPATH": str(cloud_init)},
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert read["token"], "cloud-init got no session token"
    ec2 = read["ec2"]
    assert ec2["user-data"] == USER_DATA
    facts = ec2["meta-data"]
    assert facts["local-ipv4"] == net.a.ip
    assert facts["public-ipv4"] == "203.0.113.9"
    assert facts["local-hostname"] == "web-5"
    assert [key["openssh-key"] if isinstance(key, dict) else key for key in facts["public-keys"].values()]
    assert facts["network"]["interfaces"]["macs"][net.a.mac]["local-ipv4s"] == net.a.ip
    assert ec2["dynamic"]["instance-identity"]["document"]["privateIp"] == net.a.ip
    assert read["is_there"]
    openstack = read["openstack"]
    assert openstack["metadata"]["uuid"] == net.a.uuid
    assert openstack["metadata"]["public_keys"] == {"key-1": KEYS[0], "key-2": KEYS[1]}
    assert openstack["userdata"] == USER_DATA
    assert openstack["networkdata"]["networks"][0]["network_id"] == NETWORK_UUID


def test_a_guest_is_known_by_where_it_asks_from_and_by_no_header(net: Net, make_metadata: Make) -> None:
    serve(make_metadata(), net)
    assert uuid_told(net.a) == net.a.uuid
    assert uuid_told(net.b) == net.b.uuid
    for header in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Host", "X-Instance-ID", "X-Tenant-ID"):
        for value in (net.b.ip, net.b.uuid, f"for={net.b.ip}"):
            status, body = net.a.get("/openstack/latest/meta_data.json", "-H", f"{header}: {value}")
            assert net.b.uuid not in body
            assert status in (200, 400), header
    _, token = net.b.get("/latest/api/token", "-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 60")
    assert net.b.get(ID, "-H", f"X-aws-ec2-metadata-token: {token}")[0] == 200
    assert net.a.get(ID, "-H", f"X-aws-ec2-metadata-token: {token}")[0] == 401


def test_a_guest_is_known_by_its_link_local_address(net: Net, make_metadata: Make) -> None:
    serve(make_metadata(), net)
    assert json.loads(
        wait_for(
            lambda: net.b.get("/openstack/latest/meta_data.json", address=f"[{ADDRESS6}%25eth0]")[1],
            what="an answer over IPv6",
        )
    )["uuid"] == net.b.uuid  # fmt: skip


def test_somebody_unknown_is_told_nothing(net: Net, make_metadata: Make) -> None:
    serve(make_metadata(), net)
    ip("-n", net.a.netns, "address", "add", "10.20.0.77/24", "dev", "eth0")
    for path in ("/", ID, "/openstack", "/latest/user-data"):
        status, body = net.a.get(path, "--interface", "10.20.0.77")
        assert (status, body) == (404, "404 Not Found\n")
    assert net.a.get("/latest/api/token", "--interface", "10.20.0.77", "-X", "PUT")[0] == 404


@pytest.mark.parametrize(
    "options",
    [
        ("-X", "DELETE"),
        ("-X", "POST", "-d", "x" * 9000),
        ("-H", "X: " + "y" * 20000),
        ("-H", "Transfer-Encoding: chunked", "-H", "Content-Length: 5", "-d", "12345"),
    ],
)
def test_bad_questions_are_refused_and_the_next_is_answered(
    net: Net, make_metadata: Make, options: tuple[str, ...]
) -> None:
    serve(make_metadata(), net)
    assert 400 <= net.a.get(ID, *options)[0] < 500
    assert is_answered(net.a)


def test_many_slow_connections_of_one_guest_keep_no_other_from_being_answered(net: Net, make_metadata: Make) -> None:
    serve(make_metadata(), net)
    program = (
        "import socket, sys\n"
        "held = []\n"
        "for _ in range(300):\n"
        "    one = socket.socket(); one.settimeout(5)\n"
        "    try:\n"
        "        one.connect(('169.254.169.254', 80)); one.send(b'GET /latest/'); held.append(one)\n"
        "    except OSError: pass\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        ["ip", "netns", "exec", net.a.netns, sys.executable, "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as slow:  # fmt: skip
        assert slow.stdout is not None and slow.stdout.readline() == "held\n"
        for _ in range(20):
            assert is_answered(net.b)
        slow.communicate("", timeout=30)


def test_the_service_goes_on_while_the_daemon_is_down_and_is_found_again(net: Net, make_metadata: Make) -> None:
    first = make_metadata()
    serve(first, net)
    pid = pid_of(net)
    first.close()
    assert is_answered(net.a)
    second = make_metadata()
    serve(second, net, is_scan=True)
    assert pid_of(net) == pid
    second.leave(VNI)
    assert not (told.directory_of(net.state) / handing.SOCKET).exists(), "it ends with the last network"
    assert not is_answered(net.a)


def test_a_service_that_dies_is_started_again(net: Net, make_metadata: Make) -> None:
    metadata = make_metadata()
    serve(metadata, net)
    pid = pid_of(net)
    subprocess.run(["kill", f"-{signal.SIGKILL}", str(pid)], check=True)
    wait_for(lambda: is_answered(net.a), timeout_s=60, what="another one answers")
    assert pid_of(net) != pid


def test_a_service_that_hangs_is_ended_and_another_started(net: Net, make_metadata: Make) -> None:
    metadata = make_metadata(answer_timeout_s=1.0)
    serve(metadata, net)
    pid = pid_of(net)
    os.kill(pid, signal.SIGSTOP)
    metadata.serve(VNI, net.netns, net.callers(), is_scan=True)
    wait_for(lambda: has_ended(pid), what="the one that hangs is ended")
    wait_for(lambda: is_answered(net.a), timeout_s=60, what="another one answers")
    assert pid_of(net) != pid


def test_a_service_that_hangs_keeps_no_network_from_being_left(net: Net, make_metadata: Make) -> None:
    metadata = make_metadata(answer_timeout_s=1.0)
    serve(metadata, net)
    pid = pid_of(net)
    os.kill(pid, signal.SIGSTOP)
    metadata.leave(VNI)
    assert has_ended(pid)
    assert list(told.directory_of(net.state).glob("*.json")) == []


def test_a_state_directory_may_have_any_path(tmp_path: Path) -> None:
    """The path of a Unix socket may have 107 bytes, and that of a state directory thousands."""
    net = Net(tmp_path / ("x" * 120) / ("y" * 120))
    metadata = HostMetadata(net.state)
    try:
        serve(metadata, net)
        metadata.leave(VNI)
        assert not (told.directory_of(net.state) / handing.SOCKET).exists()
    finally:
        metadata.close()
        net.remove()


def test_a_service_that_dies_soon_again_is_started_after_a_pause(net: Net, make_metadata: Make) -> None:
    serve(make_metadata(), net)
    os.kill(pid_of(net), signal.SIGKILL)
    wait_for(lambda: is_answered(net.a), timeout_s=60, what="another one answers")
    began_s = time.monotonic()
    os.kill(pid_of(net), signal.SIGKILL)
    wait_for(lambda: is_answered(net.a), timeout_s=60, what="a third one answers")
    assert time.monotonic() - began_s > RETRY_S / 2


def test_a_service_that_ended_with_its_last_network_is_started_at_once(net: Net, make_metadata: Make) -> None:
    metadata = make_metadata()
    for _ in range(4):
        began_s = time.monotonic()
        serve(metadata, net)
        metadata.leave(VNI)
        assert time.monotonic() - began_s < RETRY_S


def test_a_service_of_another_version_gives_way(net: Net, make_metadata: Make) -> None:
    run = "import ecompute; ecompute.__version__ = '0.0.1'; from md_server.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", run, "--background", "--state-dir", str(net.state)], check=False, timeout=60
    )
    assert done.returncode == 0
    old = pid_of(net)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way, socket.socket() as listening:
        with socket_in(told.directory_of(net.state), handing.SOCKET) as name:
            way.connect(name)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        socket.send_fds(way, [handing.encode(handing.Serve(VNI + 1, "mark"))], [listening.fileno()])
        assert handing.decode_answer(way.recv(handing.LIMIT_BYTES)).networks == {VNI + 1: "mark"}
    serve(make_metadata(), net)
    assert pid_of(net) != old
    new = pid_of(net)
    serve(make_metadata(), net, is_scan=True)
    assert pid_of(net) == new, "one of our own version goes on"


def test_a_long_log_is_put_aside_when_the_service_is_started(net: Net, make_metadata: Make) -> None:
    log = told.directory_of(net.state) / told.LOG
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * told.LOG_LIMIT_BYTES)
    serve(make_metadata(), net)
    assert log.stat().st_size < 1000
    assert log.with_suffix(".old").stat().st_size == told.LOG_LIMIT_BYTES


def test_a_device_made_anew_gets_new_sockets_at_the_scan(net: Net, make_metadata: Make) -> None:
    metadata = make_metadata()
    serve(metadata, net)
    for place, number in ((net.a, 5), (net.b, 6)):
        ip("-n", net.netns, "link", "set", f"g{number}", "nomaster")
        assert not is_answered(place)
    ip("-n", net.netns, "link", "delete", "lan")
    ip("-n", net.netns, "link", "add", "lan", "type", "bridge", "forward_delay", "0")
    net.dress()
    for number in (5, 6):
        ip("-n", net.netns, "link", "set", f"g{number}", "master", "lan", "up")
    metadata.serve(VNI, net.netns, net.callers(), is_scan=True)
    wait_for(lambda: is_answered(net.a), what="it answers on the new device")
    assert json.loads(
        wait_for(
            lambda: net.b.get("/openstack/latest/meta_data.json", address=f"[{ADDRESS6}%25eth0]")[1],
            what="an answer over IPv6 on the new device",
        )
    )["uuid"] == net.b.uuid  # fmt: skip


def test_what_a_killed_daemon_has_left_is_known_to_the_next_one(net: Net, make_metadata: Make) -> None:
    serve(make_metadata(), net)
    assert make_metadata().served() == {VNI}
    assert is_answered(net.a)
    make_metadata().leave(VNI)
    assert make_metadata().served() == frozenset()
    assert not (told.directory_of(net.state) / handing.SOCKET).exists()
    assert list(told.directory_of(net.state).glob("*.json")) == []


def test_only_its_own_user_may_hand_it_sockets(net: Net, make_metadata: Make) -> None:
    serve(make_metadata(), net)
    directory = told.directory_of(net.state)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / handing.SOCKET).stat().st_mode & 0o777 == 0o600
    for path in directory.glob("*.json"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert USER_DATA not in (directory / "log").read_text()


def test_nonsense_at_the_desk_ends_that_talk_and_nothing_else(net: Net, make_metadata: Make) -> None:
    serve(make_metadata(), net)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way,
        socket_in(told.directory_of(net.state), handing.SOCKET) as name,
    ):
        way.connect(name)
        way.send(b'{"type": "serve"}')
        assert way.recv(100) == b""
    assert is_answered(net.a)


def test_sockets_that_do_not_come_whole_or_cannot_be_served_are_refused_and_let_go(
    net: Net, make_metadata: Make
) -> None:
    serve(make_metadata(), net)
    with ExitStack() as opened:
        listening = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        address = listening[0].getsockname()
        deaf = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for sockets in ([], listening, [listening[0], deaf]):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way:
                way.settimeout(10)
                way.connect(str(told.directory_of(net.state) / handing.SOCKET))
                question = handing.encode(handing.Serve(VNI + 1, "mark"))
                socket.send_fds(way, [question], [one.fileno() for one in sockets])
                assert way.recv(100) == b""
            assert marks(net).keys() == {VNI}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=1)
    assert is_answered(net.a)


def test_what_could_not_be_listened_on_over_ipv6_is_tried_at_the_scan_and_let_alone_while_it_cannot(
    net: Net, make_metadata: Make
) -> None:
    ip("-n", net.netns, "address", "delete", f"{ADDRESS6}/64", "dev", "lan")
    metadata = make_metadata()
    serve(metadata, net)
    served = marks(net)
    metadata.serve(VNI, net.netns, net.callers(), is_scan=True)
    assert is_answered(net.a) and marks(net) == served
    ip("-n", net.netns, "address", "add", f"{ADDRESS6}/64", "dev", "lan", "nodad")
    metadata.serve(VNI, net.netns, net.callers(), is_scan=True)
    wait_for(lambda: net.b.get(ID, address=f"[{ADDRESS6}%25eth0]")[0] == 200, what="an answer over IPv6 after the scan")
    assert is_answered(net.a)


def test_it_can_do_nothing_but_read_and_answer(net: Net, make_metadata: Make) -> None:
    serve(make_metadata(), net)
    pid = pid_of(net)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd")} == dict.fromkeys(
        ("CapEff", "CapPrm", "CapInh", "CapBnd"), 0
    )
    assert status["NoNewPrivs"] == "1"
    assert not Path(f"/proc/{pid}/task/{pid}/children").read_text().split(), "it forks nothing"
    for task in Path(f"/proc/{pid}/task").iterdir():
        assert "CapEff:\t0000000000000000\n" in (task / "status").read_text()
