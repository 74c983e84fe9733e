"""What guests and hosts see of each other over a network."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cloud import Cluster, Guest, Host, wait_for

from ecompute.dev.hosts import ip
from ecompute.dev.processes import Child

PORT = 5353
HERE = Path(__file__).parent


def test_guests_on_two_hosts_ping_each_other(cluster: Cluster) -> None:
    first_host, second_host = cluster.hosts
    ping = "#!/bin/sh\nuntil ping -c 1 -W 1 {0}; do :; done\necho {1} reached {0}\n"
    first = cluster.launch(host=first_host, name="first", user_data="#!/bin/sh\necho waiting to be reached\n")
    second = cluster.launch(host=second_host, name="second", user_data=ping.format(first.address, "second"))
    third = cluster.launch(host=first_host, name="third", user_data=ping.format(second.address, "third"))
    assert (first.host, second.host) == (first_host, second_host)
    second_host.wait_console(second.uuid, f"second reached {first.address}\n")
    first_host.wait_console(third.uuid, f"third reached {second.address}\n")
    for guest in (first, second, third):
        said = cluster.wait_booted(guest)
        assert f"guest: address {guest.address}/24\n" in said
        assert f"guest: uuid {guest.uuid}\n" in said
        assert "guest: problem" not in said
    cluster.agree()
    cluster.destroy(first.uuid, second.uuid, third.uuid)
    cluster.agree()


@pytest.mark.parametrize("port_name", ["ectffffffff", "other0"], ids=["as-a-guests-tap", "as-an-operators-port"])
def test_nothing_of_the_host_answers_in_a_guests_place(cluster: Cluster, port_name: str) -> None:
    host = cluster.hosts[0]
    guest = cluster.launch(host=host)
    cluster.wait_booted(guest)
    links = {link["ifname"]: link for link in json.loads(host.run("ip", "-j", "link").stdout)}
    bridge = next(name for name in links if name.startswith("ecb"))
    place = f"{cluster.prefix}h99"  # removed with the hosts' namespaces, if not before
    ip("netns", "add", place)
    host.kill()  # what keeps guests from the host stands without the daemon, which would put back what is opened here
    try:
        host.run("ip", "link", "add", port_name, "type", "veth", "peer", "name", "guest0", "netns", place)
        switch = f"/proc/sys/net/ipv6/conf/{port_name}/disable_ipv6"
        host.run("sh", "-c", f"echo 1 > {switch}")  # as our taps have it
        host.run("ip", "link", "set", port_name, "master", bridge, "up")
        # Whatever comes from it passes the first of the filter's rules, so that the others are tried.
        host.run("nft", "add", "element", "bridge", "ecompute", "taps", f"{{ {port_name} : accept }}")
        ip("-n", place, "link", "set", "guest0", "up")
        wait_for(lambda: _is_forwarding(host.netns, port_name), what="the bridge forwards for the new port")
        links = {link["ifname"]: link for link in json.loads(host.run("ip", "-j", "link").stdout)}
        with _listening(cluster, host.netns) as listener:
            own = {link["address"] for name, link in links.items() if name != "lo"}
            asked = {
                "macs": sorted(own - {_mac(guest.uuid, host)}),
                "addresses": [host.address, "127.0.0.1", "169.254.0.1", cluster.address],
                "port": PORT,
                "guest": guest.address,
                "guest_mac": _mac(guest.uuid, host),
            }
            done = subprocess.run(
                ["ip", "netns", "exec", place, sys.executable, str(HERE / "probe.py"), "guest0", json.dumps(asked)],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout)
            assert told["guest"], "the guest itself did not answer: the questions do not arrive"
            answers = [line for line in told["answers"] if not _is_gateway_asking(line, bridge)]
            assert answers == [], "\n".join(answers)
            # The service is there, and from elsewhere it is reached.
            assert "reached" not in listener.log_tail()
            _knock(host.address)
            wait_for(lambda: f"reached from {cluster.address}" in listener.log_tail(), what="the service is reached")
    finally:
        host.run("nft", "delete", "element", "bridge", "ecompute", "taps", f"{{ {port_name} }}", check=False)
        host.run("ip", "link", "delete", port_name, check=False)
        ip("netns", "delete", place)
        host.start()
    cluster.destroy(guest.uuid)
    cluster.agree()


HARMS = {
    "the VXLAN device deleted": "ip link delete $(ip -o link | grep -o 'ecx[0-9a-f]*' | head -n 1)",
    "the bridge deleted": "ip link delete $(ip -o link | grep -o 'ecb[0-9a-f]*' | head -n 1)",
    "every rule deleted": "nft flush ruleset",
    "our rules opened": "nft insert rule bridge ecompute prerouting accept",
}


def test_what_somebody_deletes_is_put_back_and_guests_reach_each_other_again(cluster: Cluster) -> None:
    first_host, second_host = cluster.hosts
    ticks = "#!/bin/sh\n(n=0; while sleep 1; do ping -c 1 -W 1 {0} >/dev/null && n=$((n+1)) && echo {1} $n; done) &\n"
    first = cluster.launch(host=first_host, name="first", user_data="#!/bin/sh\necho waiting to be reached\n")
    across = cluster.launch(host=second_host, name="across", user_data=ticks.format(first.address, "across"))
    beside = cluster.launch(host=second_host, name="beside", user_data=ticks.format(across.address, "beside"))
    second_host.wait_console(across.uuid, "across 2\n")
    second_host.wait_console(beside.uuid, "beside 2\n")

    def reached(guest: Guest, what: str) -> int:
        return second_host.console(guest.uuid).count(f"{what} ")

    for harm in HARMS.values():
        before = reached(beside, "beside")
        first_host.run("sh", "-ec", harm)
        cluster.agree()  # well before the next scan
        was = reached(across, "across")
        wait_for(lambda was=was: reached(across, "across") > was + 1, what="the guest is reached again")  # type: ignore[misc]
        wait_for(lambda before=before: reached(beside, "beside") > before, what="the others go on")  # type: ignore[misc]
    cluster.destroy(first.uuid, across.uuid, beside.uuid)
    cluster.agree()


def _is_forwarding(netns: str, port: str) -> bool:
    (link,) = json.loads(ip("-n", netns, "-d", "-j", "link", "show", "dev", port))
    return link["linkinfo"]["info_slave_data"]["state"] == "forwarding"


def _is_gateway_asking(line: str, bridge: str) -> bool:
    """Whether it is the network's gateway, which looks for whoever has asked: a neighbour solicitation."""
    mac, kind, content = line.split()
    is_gateway = mac.replace(":", "") == f"06ec01{bridge.removeprefix('ecb')}"
    return is_gateway and kind == "86dd" and content[80:82] == "87"


def _mac(uuid: str, host: Host) -> str:
    xml: str = host.domain(uuid).XMLDesc()
    return xml.split("<mac address='")[1].split("'")[0]


def _listening(cluster: Cluster, netns: str) -> Child:
    argv = ["ip", "netns", "exec", netns, sys.executable, HERE / "listener.py", str(PORT), "224.0.0.251"]
    child = Child("a service of the host", argv, cluster.directory / f"listener-{netns}.log")
    child.log.unlink(missing_ok=True)
    child.start()
    return child.wait_ready(lambda: "listening" in child.log_tail(), timeout_s=20)


def _knock(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"knock", (address, PORT))
