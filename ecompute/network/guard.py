"""The rules of the filter: what guests, and the underlay, may not send.

Tables of ours (``ecompute``) in three families. Some of it is the same for all networks, so that there
is no moment in which a device is without; the rest belongs to one network and has its VNI in its name.

- ``bridge``, prerouting: what comes from a tap goes through that tap's own chain, and a tap without one
  passes nothing. The chain lets pass the guest's MAC, its addresses (routed ones, and the IPv6 address
  made of its MAC), what it needs to get them (DHCP, probes), and nothing that only a DHCP server or a
  router says. What comes from a VXLAN port must not be DHCP, nor have to do with a gateway: every host
  has its own. A VXLAN port of which nothing is known passes nothing.
- ``bridge``, postrouting: the same for what goes out by a VXLAN port.
- ``bridge``, input: what a device of ours hands up to the host is dropped.
- ``inet`` and ``arp``, input and forward: what has come up all the same is neither taken nor routed, be
  it from a bridge of ours (through a port that an operator has put there), or from the port itself: a
  bridge hands up frames to 01:80:c2:00:00:0e (LLDP, but they may hold an IP packet) past its own input
  hook. The rules on forward let pass what goes back into a bridge of ours: with
  `bridge-nf-call-iptables` the kernel shows bridged packets there.
- ``inet`` and ``arp``, output: the host itself says nothing on our devices.
- ``inet``, input: a VXLAN packet of a network of ours is taken only from its members. Those of other
  networks than ours are somebody else's, and not looked at.

The bridge is matched by its ports' names: `meta ibrname` needs a module that not every kernel has.

Pure. Any thread may call this.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from ipaddress import IPv6Address
from typing import Any

from ecompute.network.names import (
    BRIDGE_PREFIX,
    GATEWAY_PREFIX,
    METADATA,
    METADATA6,
    TAP_PREFIX,
    VLAN_PREFIX,
    VXLAN_PORT,
    VXLAN_PREFIX,
    link_local,
    vxlan_name,
)
from ecompute.network.nft import Json
from ecompute.network.rules import ACCEPT, BEFORE_ALL, Rules, field, jump, match, meta, prefix
from ecompute.network.tables import Key
from ecompute.network.terms import Part, Tap

TABLE = "ecompute"
FAMILIES = ("bridge", "inet", "arp")
TABLES = tuple((family, TABLE) for family in FAMILIES)

OURS = (BRIDGE_PREFIX, TAP_PREFIX, VXLAN_PREFIX, GATEWAY_PREFIX, VLAN_PREFIX)
PORTS = (TAP_PREFIX, VXLAN_PREFIX, GATEWAY_PREFIX, VLAN_PREFIX)

TAPS = "taps"
UNDERLAYS = "underlays"
"""The maps from a tap, and from a VXLAN port, to its chain."""

NOBODY = "0.0.0.0"  # noqa: S104 - nothing is bound to it

_GATEWAYS = {"range": ["06:ec:01:00:00:00", "06:ec:01:ff:ff:ff"]}
"""`names.gateway_mac` of all networks."""

_FOR_ROUTERS = ["nd-router-solicit", "nd-router-advert", "nd-redirect"]
_PART = re.compile(r"n([0-9a-f]{6})\.")


# --- words ---------------------------------------------------------------------------------------


DROP: tuple[Json, Json] = ({"counter": None}, {"drop": None})


def _in(left: Json, members: Collection[Any], op: str = "==") -> Json:
    """nft makes of a set with one member a comparison with that."""
    members = sorted(members)
    return match(left, {"set": members} if len(members) > 1 else members[0], op)


def _name(key: str, op: str, beginning: str) -> Json:
    return match(meta(key), f"{beginning}*", op)


def _target(addresses: Iterable[str], op: str = "==") -> Json:
    """Whom a neighbour solicitation or advertisement is about: behind its first eight octets (RFC 4861)."""
    about = {"payload": {"base": "th", "offset": 64, "len": 128}}
    return _in(about, [f"0x{int(IPv6Address(address)):032x}" for address in addresses], op)


def _is_ether(*kinds: str, op: str = "==") -> Json:
    """The type that stands in the frame: that of a tag, where it has one."""
    return _in(field("ether", "type"), kinds, op)


def _goto(chain: str) -> Json:
    return {"goto": {"target": chain}}


def _choose(key: Json, data: Any) -> Json:
    return {"vmap": {"key": key, "data": data}}


def _filled(rules: Rules, chain: Json, *expressions: Iterable[Json]) -> list[Json]:
    name = chain["chain"]["name"]
    return [chain, *(rules.rule(name, *expression) for expression in expressions)]


def _chain(family: str, name: str, *expressions: Iterable[Json]) -> list[Json]:
    rules = Rules(family, TABLE)
    return _filled(rules, rules.chain(name), *expressions)


def _hooked(family: str, hook: str, *expressions: Iterable[Json]) -> list[Json]:
    rules = Rules(family, TABLE)
    return _filled(rules, rules.hook(hook, "filter", BEFORE_ALL), *expressions)


def _map(name: str) -> Json:
    return {"map": {"family": "bridge", "table": TABLE, "name": name, "type": "ifname", "map": "verdict"}}


# --- what holds for all networks -----------------------------------------------------------------


def base(vnis: Collection[int]) -> list[Json]:
    """Return what is there while there is any network, in its order.

    Args:
        vnis: of the virtual networks of this host.
    """
    return [*_bridge(), *_inet(vnis), *_arp()]


def _bridge() -> list[Json]:
    dhcp = [67, 68, 546, 547]
    return [
        Rules("bridge", TABLE).table,
        _map(TAPS),
        _map(UNDERLAYS),
        *_chain(
            "bridge",
            "from-guest4",
            *_is_served(67, 68),
            [_in(field("icmp", "type"), ["redirect", "router-advertisement"]), *DROP],
            [ACCEPT],
        ),
        *_chain(
            "bridge",
            "from-guest6",
            # A router says things from such an address only; in fragments they could not be seen.
            [
                match(field("ip6", "saddr"), prefix("fe80::/10")),
                match({"exthdr": {"name": "frag"}}, True),
                *DROP,
            ],
            *_is_served(547, 546),
            [_in(field("icmpv6", "type"), ["nd-router-advert", "nd-redirect"]), *DROP],
            [ACCEPT],
        ),
        *_chain(
            "bridge",
            "underlay",
            [_is_ether("arp", "ip", "ip6", op="!="), *DROP],
            [match(field("ether", "saddr"), _GATEWAYS), *DROP],
            [match(field("ether", "daddr"), _GATEWAYS), *DROP],
            [_in(field("udp", "sport"), dhcp), *DROP],
            [_in(field("udp", "dport"), dhcp), *DROP],
            [_in(field("icmpv6", "type"), _FOR_ROUTERS), *DROP],
            *_not_about(METADATA, METADATA6),
        ),
        *_hooked(
            "bridge",
            "prerouting",
            [_choose(meta("iifname"), f"@{TAPS}")],
            [_name("iifname", "==", TAP_PREFIX), *DROP],
            [_name("iifname", "==", VXLAN_PREFIX), jump("underlay")],
            [_choose(meta("iifname"), f"@{UNDERLAYS}")],
            [_name("iifname", "==", VXLAN_PREFIX), *DROP],
        ),
        *_hooked(
            "bridge",
            "postrouting",
            [_name("oifname", "==", VXLAN_PREFIX), jump("underlay")],
            [_choose(meta("oifname"), f"@{UNDERLAYS}")],
            [_name("oifname", "==", VXLAN_PREFIX), *DROP],
        ),
        *_hooked("bridge", "input", *([_name("iifname", "==", beginning), *DROP] for beginning in PORTS)),
    ]


def _is_served(server: int, client: int) -> list[list[Json]]:
    """Nobody plays DHCP server: clients look at the port that is theirs, whatever it comes from."""
    return [[match(field("udp", "sport"), server), *DROP], [match(field("udp", "dport"), client), *DROP]]


def _asks_for(mac: str) -> list[list[Json]]:
    """It asks the DHCP server in its own name (chaddr, RFC 2131), or not at all."""
    to_server = match(field("udp", "dport"), 67)
    chaddr = {"payload": {"base": "th", "offset": 288, "len": 48}}
    return [[to_server, match(chaddr, int(mac.replace(":", ""), 16)), _goto("from-guest4")], [to_server, *DROP]]


def _not_about(*addresses: str) -> list[list[Json]]:
    """Nobody asks for these addresses, or says that they are his."""
    rules: list[list[Json]] = []
    for address in addresses:
        if ":" in address:
            is_about = _in(field("icmpv6", "type"), ["nd-neighbor-solicit", "nd-neighbor-advert"])
            rules.append([is_about, _target([address]), *DROP])
        else:
            rules += [[match(field("arp", f"{end} ip"), address), *DROP] for end in ("saddr", "daddr")]
    return rules


def _inet(vnis: Collection[int]) -> list[Json]:
    to_elsewhere = _name("oifname", "!=", BRIDGE_PREFIX)
    vni = {"payload": {"base": "th", "offset": 96, "len": 24}}
    chosen = [[number, _goto(f"{_prefix(number)}members")] for number in sorted(vnis)]
    return [
        Rules("inet", TABLE).table,
        *_chain("inet", "vxlan", *([[_choose(vni, {"set": chosen})]] if chosen else [])),
        # Where the kernel shows bridged packets here: what guests say to each other fills no table of the host's.
        *_hooked("inet", "prerouting", [_name("iifname", "==", BRIDGE_PREFIX), {"notrack": None}]),
        *_hooked(
            "inet",
            "input",
            *([_name("iifname", "==", beginning), *DROP] for beginning in OURS),
            [match(field("udp", "dport"), VXLAN_PORT), jump("vxlan")],
        ),
        *_hooked("inet", "forward", *([_name("iifname", "==", beginning), to_elsewhere, *DROP] for beginning in OURS)),
        *_hooked("inet", "output", *([_name("oifname", "==", beginning), *DROP] for beginning in OURS)),
    ]


def _arp() -> list[Json]:
    return [
        Rules("arp", TABLE).table,
        *_hooked("arp", "input", *([_name("iifname", "==", beginning), *DROP] for beginning in OURS)),
        *_hooked("arp", "output", *([_name("oifname", "==", beginning), *DROP] for beginning in OURS)),
    ]


# --- what belongs to one network -----------------------------------------------------------------


def of_network(part: Part) -> list[Json]:
    """Return what is there for one network beside `base`."""
    items: list[Json] = []
    if part.members is not None:
        own = _prefix(part.vni)
        members = f"{own}members"
        items += [
            *_chain("bridge", f"{own}underlay", *_not_about(*part.gateways)),
            _maps("bridge", UNDERLAYS, vxlan_name(part.vni), f"{own}underlay"),
            Rules("inet", TABLE).set(members, ()),
            *(
                {"element": {"family": "inet", "table": TABLE, "name": members, "elem": [member]}}
                for member in sorted(part.members)
            ),
            *_chain("inet", members, [match(field("ip", "saddr"), f"@{members}"), ACCEPT], DROP),
        ]
    for tap in sorted(part.taps, key=lambda tap: tap.name):
        chain = chain_of(part.vni, tap.name)
        items += [*_chain("bridge", chain, *_of_tap(tap)), _maps("bridge", TAPS, tap.name, chain)]
    return items


def _maps(family: str, name: str, key: str, chain: str) -> Json:
    return {"element": {"family": family, "table": TABLE, "name": name, "elem": [[key, _goto(chain)]]}}


def _of_tap(tap: Tap) -> list[Iterable[Json]]:
    is_own_arp = match(field("arp", "saddr ether"), tap.mac)
    start: list[Iterable[Json]] = [
        [match(field("ether", "saddr"), tap.mac, "!="), *DROP],
        [_is_ether("arp", "ip", "ip6", op="!="), *DROP],
    ]
    if tap.addresses is None:
        return [
            *start,
            [is_own_arp, ACCEPT],
            # With a host's address, as may be here, it would be taken for one.
            [_is_ether("ip"), match(field("udp", "dport"), VXLAN_PORT), *DROP],
            *([_is_ether("ip"), *rule] for rule in _asks_for(tap.mac)),
            [_is_ether("ip"), _goto("from-guest4")],
            [_is_ether("ip6"), _goto("from-guest6")],
            DROP,
        ]
    four = [address for address in tap.addresses if ":" not in address]
    six = [link_local(tap.mac), *(address for address in tap.addresses if ":" in address)]
    source4, source6 = field("ip", "saddr"), field("ip6", "saddr")
    own: list[Iterable[Json]] = []
    if four:
        own += [
            [is_own_arp, _in(field("arp", "saddr ip"), four), ACCEPT],
            *([_in(source4, four), *rule] for rule in _asks_for(tap.mac)),
            [_in(source4, four), _goto("from-guest4")],
            # It asks whether an address of its own is free (RFC 5227): of another's that would be a conflict.
            [
                match(field("arp", "operation"), "request"),
                is_own_arp,
                match(field("arp", "saddr ip"), NOBODY),
                _in(field("arp", "daddr ip"), four),
                ACCEPT,
            ],
        ]
    return [
        *start,
        *own,
        # It asks for an address of its own.
        *(
            [
                match(source4, NOBODY),
                match(field("ip", "daddr"), "255.255.255.255"),
                match(field("udp", "sport"), 68),
                *rule,
            ]
            for rule in _asks_for(tap.mac)
        ),
        [match(field("icmpv6", "type"), "nd-neighbor-advert"), _target(six, "!="), *DROP],
        [_in(source6, six), _goto("from-guest6")],
        # The same in IPv6 (RFC 4862, section 5.4), and the groups that it joins meanwhile (RFC 3590).
        [match(source6, "::"), match(field("icmpv6", "type"), "nd-neighbor-solicit"), _target(six), ACCEPT],
        [match(source6, "::"), _in(field("icmpv6", "type"), ["mld2-listener-report", "nd-router-solicit"]), ACCEPT],
        DROP,
    ]


# --- whose is it ---------------------------------------------------------------------------------


def _prefix(vni: int) -> str:
    return f"n{vni:06x}."


def chain_of(vni: int, tap: str) -> str:
    """Return the name of a tap's chain."""
    return _prefix(vni) + tap


def owner(key: Key, content: str) -> int | None:
    """Return the VNI of the network to which an object of ours belongs; None: to all."""
    match = _PART.match(key.name) or (_PART.search(content) if key.kind == "element" else None)
    return int(match[1], 16) if match else None


def virtual(keys: Iterable[Key]) -> frozenset[int]:
    """Return the VNIs of the networks whose VXLAN packets are looked at."""
    return frozenset(
        int(match[1], 16)
        for key in keys
        if key.kind == "chain" and key.family == "inet" and (match := _PART.match(key.name))
    )


def taps_in(keys: Iterable[Key]) -> frozenset[str]:
    """Return the taps that have a chain."""
    return frozenset(
        tap
        for key in keys
        if key.kind == "chain" and key.family == "bridge"
        if (tap := _PART.sub("", key.name)) != key.name and tap.startswith(TAP_PREFIX)
    )
