"""``eschedule network create | list | show | delete``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import put, say
from eschedule.cli.completion import complete_network
from eschedule.cli.output import format_option, show_one, show_rows
from eschedule.cli.route import route, unroute
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from ecompute.cluster.documents import Network, Port
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.networks import Usage

FIELDS = (
    "name",
    "uuid",
    "namespace",
    "kind",
    "cidr",
    "cidr6",
    "gateway",
    "gateway6",
    "dhcp",
    "nat",
    "dns",
    "domain",
    "physical",
    "vlan",
    "mtu",
    "vni",
    "created_at",
)
COLUMNS = ("name", "cidr", "cidr6", "dhcp", "nat", "dns", "physical", "vlan", "uuid")


@click.group()
def network() -> None:
    """Make networks for instances: with -n NET they are launched on them.

    A NETWORK is a name or a uuid. Names may repeat, but for default: that is the network of an instance
    that is launched without -n, and is made when it is first needed.

    \b
    Example:  eschedule network create web 10.1.0.0/24
              eschedule launch --name web-1 -n web@10.1.0.5
              eschedule network show web
    """


network.add_command(route)
network.add_command(unroute)


@network.command()
@click.argument("name")
@click.argument("cidr", required=False)
@click.option("--cidr6", metavar="RANGE", help="An IPv6 /64 besides, like fd5c:1f4e:73a2:1::/64.")
@click.option("--dhcp/--no-dhcp", "has_dhcp", default=None, help="Whether hosts tell guests their addresses.")
@click.option("--nat/--no-nat", "has_nat", default=None, help="Whether guests reach the outside.")
@click.option("--dns/--no-dns", "has_dns", default=None, help="Whether hosts answer for names.")
@click.option("--domain", metavar="DOMAIN", help="Of the names of its instances, like lab.internal.")
@click.option("--physical", metavar="BRIDGE", help="A bridge of the hosts, as operators call it, instead of a tunnel.")
@click.option("--vlan", type=int, metavar="N", help="On that bridge; otherwise untagged.")
@click.option("--gateway", metavar="ADDRESS", help="The router of a physical network, which guests are told.")
@click.option("--mtu", type=int, metavar="BYTES", help="Of a physical network; otherwise 1500.")
@format_option
@click.pass_obj
def create(
    settings: Settings,
    name: str,
    cidr: str | None,
    cidr6: str | None,
    has_dhcp: bool | None,
    has_nat: bool | None,
    has_dns: bool | None,
    domain: str | None,
    physical: str | None,
    vlan: int | None,
    gateway: str | None,
    mtu: int | None,
    output: str,
) -> int:
    """Make a network of the range CIDR, a /29 to a /16, which may be another network's as well.

    DHCP, NAT and DNS are on, each unless it is said to be off. Its first address is the gateway's. On a
    --physical network all three are the operator's, and CIDR may be left out: then it gives out no addresses.

    \b
    Example:  eschedule network create web 10.1.0.0/24
              eschedule network create db 10.1.0.0/24 --no-nat --domain db.internal
              eschedule network create office 10.5.0.0/24 --physical lan --vlan 5 --gateway 10.5.0.254
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.network_request import NetworkRequest
        from eschedule.cloud.networks import Networks

        request = NetworkRequest(
            name=name,
            cidr=cidr,
            cidr6=cidr6,
            has_dhcp=has_dhcp,
            has_nat=has_nat,
            has_dns=has_dns,
            domain=domain,
            physical=physical,
            vlan=vlan,
            gateway=gateway,
            mtu=mtu,
        )
        networks = Networks.of(cloud, warn=lambda note: say(f"warning: {note}"))
        made = networks.create(settings.namespace, request).value
        show_one(describe(made), output)
        lacking = None if made.physical is None or _is_anywhere(cloud, made.physical) else made.physical
    if lacking is not None:
        advice = "name it under `bridges` in compute.yaml of those that do"
        say(f"warning: no host has a bridge called {lacking} yet; {advice}")
    elif output == "table":
        say(f"next: eschedule launch -n {made.name}")
    return 0


def _is_anywhere(cloud: Cloud, bridge: str) -> bool:
    """Whether a host has the bridge, as far as placement says now."""
    from ecompute.cluster.errors import CloudError, InvalidInput
    from ecompute.cluster.given import physnet_trait

    try:
        return bool(cloud.placement.providers(required=physnet_trait(bridge)))
    except InvalidInput:  # no host has ever had one: there is no such trait
        return False
    except CloudError:
        return True  # nothing is known: the network is made, and a launch will say more


@network.command("list")
@click.option("-A", "--all-namespaces", is_flag=True, help="Of every namespace.")
@format_option
@click.pass_obj
def list_(settings: Settings, all_namespaces: bool, output: str) -> int:
    """List the networks of the namespace, by name.

    \b
    Example:  eschedule network list
              eschedule network list -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.networks import Networks

        rows = [describe(one) for one in Networks.of(cloud).all(None if all_namespaces else settings.namespace)]
    if not rows and output == "table":
        where = "" if all_namespaces else f" in namespace {settings.namespace}"
        say(f"there are no networks{where}; `eschedule network create` makes one, and the first launch a default one")
        return 0
    show_rows(rows, output, fields=FIELDS, columns=("namespace", *COLUMNS) if all_namespaces else COLUMNS)
    return 0


@network.command()
@click.argument("network", shell_complete=complete_network)
@format_option
@click.pass_obj
def show(settings: Settings, network: str, output: str) -> int:
    """Show a network: its interfaces, the hosts that they are on, and the addresses that are left.

    \b
    Example:  eschedule network show web
              eschedule network show web -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.hosts import Hosts
        from eschedule.cloud.networks import Networks

        networks = Networks.of(cloud)
        found = networks.find(network, settings.namespace).value
        ports = sorted(networks.ports(found), key=lambda port: (port.name or "", port.interface_uuid))
        names = Hosts(cloud).names()
        members = sorted(names.get(provider, provider) for provider in networks.members(found))
        row = describe(found) | {
            "addresses": _describe_usage(networks.usage(found)),
            "hosts": members,
            "interfaces": [_describe_port(port, names) for port in ports],
        }
    if output != "table":
        show_one(row, output)
        return 0
    show_one({name: value for name, value in row.items() if name != "interfaces"}, output)
    if ports:
        put("")
        show_rows(row["interfaces"], output, fields=PORT_FIELDS, columns=PORT_COLUMNS, name="uuid")
    return 0


@network.command()
@click.argument("network", shell_complete=complete_network)
@click.pass_obj
def delete(settings: Settings, network: str) -> int:
    """Remove a network that no interface is on. Prints nothing.

    The network called default can be removed as well; it is made anew when it is next needed.

    \b
    Example:  eschedule network delete web
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.networks import Networks

        Networks.of(cloud).delete(network, settings.namespace)
    return 0


def describe(network: Network) -> dict[str, Any]:
    """Return one network as all formats show it: `FIELDS`, in order."""
    return {
        "name": network.name,
        "uuid": network.uuid,
        "namespace": network.namespace,
        "kind": str(network.kind),
        "cidr": network.cidr,
        "cidr6": network.cidr6,
        "gateway": network.gateway,
        "gateway6": network.gateway6,
        "dhcp": network.has_dhcp,
        "nat": network.has_nat,
        "dns": network.has_dns,
        "domain": network.domain,
        "physical": network.physical,
        "vlan": network.vlan,
        "mtu": network.mtu,
        "vni": network.vni,
        "created_at": network.created_at,
    }


PORT_FIELDS = ("uuid", "name", "instance_uuid", "host", "mac", "addresses", "floating", "routed")
PORT_COLUMNS = ("name", "host", "mac", "addresses", "floating", "uuid")


def _describe_port(port: Port, hosts: dict[str, str]) -> dict[str, Any]:
    return {
        "uuid": port.interface_uuid,
        "name": port.name,
        "instance_uuid": port.instance_uuid,
        "host": hosts.get(port.provider, port.provider),
        "mac": port.mac,
        "addresses": [address.split("/")[0] for address in port.addresses],
        "floating": port.floating,
        "routed": list(port.routed),
    }


def _describe_usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {"total": usage.total, "in_use": usage.in_use, "resting": usage.resting, "free": usage.free}
