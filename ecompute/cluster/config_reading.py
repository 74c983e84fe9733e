"""YAML read against a table of keys, with the line of every problem; and what each value may be.

A `Reading` goes through one file and collects its problems instead of stopping at the first; a
function ``read_…`` takes one YAML node and returns the value that it means, or raises
`BadValueError`. Pure: bytes come from the caller, and nothing is looked up. Not for use by several
threads. A value that may hold a password is not repeated in a message.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from ecompute.cluster.errors import InvalidInput, one_line

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Node = yaml.Node


class BadValueError(Exception):
    """The text says what the value must be; the key and the line are added where it is caught."""


Read = Callable[[Node], Any]

_TAG = "tag:yaml.org,2002:"
_SECRETS = {
    "etcd.password": "etcd.password_file",
    "upkeep.password": "upkeep.password_file",
    "placement.token": "placement.token_file",
    "placement.password": "placement.token_file",
}


class Section:
    """What a mapping said: only the keys that were given a value."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.values: dict[str, Any] = {}
        self.lines: dict[str, int] = {}

    def has(self, key: str) -> bool:
        return key in self.lines

    def line_of(self, *keys: str) -> int:
        return min((self.lines[key] for key in keys if key in self.lines), default=self.line)


class Reading:
    """One reading of one file: collects the problems."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problems: list[tuple[int, str]] = []

    def report(self, line: int, text: str) -> None:
        self.problems.append((line, one_line(text)))

    def compose(self, data: bytes) -> Node | None:
        """Return the tree of ``data``; None where there is nothing, or it is not YAML."""
        try:
            root: Node | None = yaml.compose(data, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            text = ", ".join(part for part in (error.context, error.problem) if part)
            self.report(mark.line + 1 if mark else 1, f"is not YAML: {text}")
        except yaml.YAMLError as error:
            self.report(1, f"is not YAML: {getattr(error, 'reason', 'it cannot be read')}")
        except RecursionError:
            self.report(1, "is nested too deeply")
        else:
            return root
        return None

    def section(self, node: Node | None, where: str, reads: Mapping[str, Read]) -> Section:
        """Read a mapping; ``where`` is the key it stands behind, empty for the whole file."""
        section = Section(_line(node) if node is not None else 1)
        if node is None or _is_null(node):
            return section
        if not isinstance(node, yaml.MappingNode):
            self.report(section.line, f"{where or 'the file'}: must be keys and values, not {_kind(node)}")
            return section
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.report(line, f"{where or 'the file'}: a key must be a word, not {_kind(key_node)}")
                continue
            key = key_node.value
            full = f"{where}.{key}" if where else key
            if key in seen:
                self.report(line, f"{_shown(full)}: stands here a second time; the first is on line {seen[key]}")
                continue
            seen[key] = line
            if key not in reads:
                self.report(line, f"{_shown(full)}: {_unknown(full, where, reads)}")
            elif not _is_null(value_node):
                # Marked as given even when it is wrong: a key with a bad value is not a missing key.
                section.lines[key] = line
                try:
                    section.values[key] = reads[key](value_node)
                except BadValueError as error:
                    self.report(_line(value_node), f"{full}: {error}")
        return section

    def path(self, node: Node) -> Path:
        text = read_text(node)
        if not text:
            raise BadValueError("must be a path")
        return self.directory / text


def _unknown(full: str, where: str, reads: Mapping[str, Read]) -> str:
    if full in _SECRETS:
        return f"secrets do not stand in this file; put it into one of its own and name that in {_SECRETS[full]}"
    prefix = f"{where}." if where else ""
    close = difflib.get_close_matches(full.removeprefix(prefix), reads, n=1, cutoff=0.5)
    if close:
        return f"unknown key; did you mean {prefix}{close[0]}?"
    return f"unknown key; known here are {', '.join(reads)}"


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _is_null(node: Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "null"


def _kind(node: Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    names = {"str": "text", "int": "a number", "float": "a number", "bool": "true or false", "null": "nothing"}
    return names.get(node.tag.removeprefix(_TAG), "a value of another kind")


def _shown(text: str) -> str:
    """Return ``text`` for a message: short, and without what may be a password."""
    if "@" in text:
        return "'…'"
    return one_line(text, 80) if text.replace(".", "").replace("_", "").isalnum() else repr(one_line(text, 80))


# --- single values -------------------------------------------------------------------------------


def read_node(node: Node) -> Node:
    """A section, to be read with a table of its own."""
    return node


def read_text(node: Node) -> str:
    # A name of digits only is a number to YAML; here what was written counts.
    if not isinstance(node, yaml.ScalarNode) or node.tag not in {
        _TAG + kind for kind in ("str", "int", "float", "timestamp")
    }:
        raise BadValueError(f"must be text, not {_kind(node)}")
    text = str(node.value).strip()
    if not text.isprintable():
        raise BadValueError("must not have control characters")
    return text


def read_integer(low: int, high: int) -> Read:
    def read(node: Node) -> int:
        # Plain decimals only: to YAML 1.1, 010 is eight and 1:30 is ninety.
        is_plain = isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "int"
        if not is_plain or not re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", node.value):
            raise BadValueError(f"must be a whole number, {low} to {high}, without quotes")
        number = int(node.value)
        if not low <= number <= high:
            raise BadValueError(f"must be {low} to {high}, not {number}")
        return number

    return read


def read_ratio(node: Node) -> float:
    is_plain = isinstance(node, yaml.ScalarNode) and node.tag in {_TAG + "int", _TAG + "float"}
    if not is_plain or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", node.value) or not 0 < float(node.value) <= 1000:
        raise BadValueError("must be a number above 0, at most 1000, such as 1.5")
    return float(node.value)


def read_boolean(node: Node) -> bool:
    if not isinstance(node, yaml.ScalarNode) or node.tag != _TAG + "bool":
        raise BadValueError(f"must be true or false, not {_kind(node)}")
    return bool(yaml.SafeLoader.bool_values[node.value.lower()])


def read_list_of(read: Read) -> Read:
    def read_list(node: Node) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise BadValueError(f"must be a list, such as [a, b], not {_kind(node)}")
        values = []
        for item in node.value:
            value = read(item)
            if value in values:
                raise BadValueError(f"names {_shown(str(value))} twice")
            values.append(value)
        return tuple(values)

    return read_list


def read_uuid(node: Node) -> str:
    text = read_text(node).lower()
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) or not uuid.UUID(text).int:
        raise BadValueError(f"must be a uuid such as `uuidgen` prints, not {_shown(text)}")
    return text


def read_name(node: Node) -> str:
    text = read_text(node)
    if not 0 < len(text) <= 200:
        raise BadValueError("must have 1 to 200 characters")
    return text


def read_host(node: Node) -> str:
    text = read_text(node)
    if not _is_host(text):
        raise BadValueError(f"must be a host name or an address without a port, not {_shown(text)}")
    return text


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # The last label of a host name is not all digits (RFC 1123); so 10.0.0.300 is not one.
        return bool(
            len(text) <= 253
            and re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?", text)
            and not text.rstrip(".").rsplit(".", 1)[-1].isdigit()
        )
    return True


def read_endpoint(node: Node) -> str:
    text = read_text(node)
    if "://" in text:
        raise BadValueError("must be host:port without http://; TLS is used as soon as etcd.ca is set")
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    if not colon or is_bracketed != (":" in bare) or not _is_host(bare) or not _is_port(port):
        raise BadValueError(f"must be host:port, such as 10.0.0.1:2379 or [fd00::1]:2379, not {_shown(text)}")
    return text


def _is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[1-9][0-9]{0,4}", text)) and int(text) <= 65535


def _http_url(node: Node) -> str:
    text = read_text(node)
    try:
        url = urlsplit(text)
        is_url = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = False
    if not is_url or " " in text:
        raise BadValueError(f"must be an http:// or https:// URL, not {_shown(text)}")
    if "@" in url.netloc:
        raise BadValueError("must not have a user or a password in it")
    return text


def read_service_url(node: Node) -> str:
    text = _http_url(node)
    if "?" in text or "#" in text:
        raise BadValueError(f"must end with its path, not {_shown(text)}")
    return text.rstrip("/")


def read_image(node: Node) -> str:
    text = read_text(node)
    if text.startswith("/"):
        return text
    try:
        return _http_url(node)
    except BadValueError as error:
        raise BadValueError(f"{error}; or an absolute path on the hosts") from error


def read_network(node: Node) -> IPNetwork:
    text = read_text(node)
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise BadValueError(f"must be a network such as 10.0.0.0/8, not {_shown(text)}") from error
        raise BadValueError(f"has bits behind its prefix; the network of {text} is {meant}") from error


def read_guest_network(node: Node) -> ipaddress.IPv4Network:
    network = read_network(node)
    if not isinstance(network, ipaddress.IPv4Network):
        raise BadValueError("must be an IPv4 network")
    if not 16 <= network.prefixlen <= 29:
        raise BadValueError(f"must have a prefix of /16 to /29, not /{network.prefixlen}")
    if network.is_loopback or network.is_multicast or network.is_link_local or network.network_address.packed[0] == 0:
        raise BadValueError(f"cannot be {network}, which has a meaning of its own; take a private one")
    return network


def read_address(node: Node) -> str:
    text = read_text(node)
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError as error:
        raise BadValueError(f"must be an IPv4 address of this host, without a prefix, not {_shown(text)}") from error
    if address.is_unspecified or address.is_multicast:
        raise BadValueError(f"must be an address of this host, not {address}")
    return str(address)


def read_server(node: Node) -> str:
    text = read_text(node)
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError as error:
        raise BadValueError(f"must be the IPv4 address of a name server, not {_shown(text)}") from error
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        raise BadValueError(f"must be an address that other hosts reach, not {address}")
    return str(address)


def read_device(node: Node) -> str:
    text = read_text(node)
    if not re.fullmatch(r"[^\s/:]{1,15}", text) or text in {".", ".."}:
        raise BadValueError(f"must be the name of a device, at most 15 characters, not {_shown(text)}")
    return text


def read_bridges(node: Node) -> dict[str, str]:
    """What operators call bridges, and the bridges' names."""
    from ecompute.cluster.given import check_physical  # which needs what is configured

    if not isinstance(node, yaml.MappingNode):
        raise BadValueError(f"must be names and bridges, such as {{lan: br0}}, not {_kind(node)}")
    bridges: dict[str, str] = {}
    for key, value in node.value:
        name = read_text(key)
        try:
            check_physical(name)
        except InvalidInput as error:
            raise BadValueError(str(error)) from error
        if name in bridges:
            raise BadValueError(f"names {_shown(name)} twice")
        bridges[name] = read_device(value)
    return bridges


def read_libvirt_uri(node: Node) -> str:
    text = read_text(node)
    url = urlsplit(text)
    if url.scheme.partition("+")[0] != "qemu":
        raise BadValueError(f"must be a URI such as qemu:///system, not {_shown(text)}")
    if url.netloc:
        raise BadValueError("must not name a host: a daemon drives the host that it runs on")
    return text


def read_accelerator(node: Node) -> str:
    text = read_text(node)
    if text not in {"auto", "kvm", "tcg"}:
        raise BadValueError(f"must be auto, kvm or tcg, not {_shown(text)}")
    return text


def read_rank(node: Node) -> str:
    text = read_text(node)
    if text not in {"spread", "pack"}:
        raise BadValueError(f"must be spread or pack, not {_shown(text)}")
    return text
