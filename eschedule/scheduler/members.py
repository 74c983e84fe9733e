"""The members of a gang as a YAML file tells them: a list, each what one launch would be. Pure.

What a member does not say is as for the others: the defaults that the caller passes in. Every mistake
of the file is told, each with its line and its member.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import yaml

from ecompute.cluster.config_reading import (
    BadValueError,
    Node,
    Read,
    Reading,
    Section,
    read_boolean,
    read_integer,
    read_list_of,
    read_text,
)
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.gangs import MEMBERS_LIMIT
from ecompute.cluster.placement import MAX_INT
from eschedule.cloud.interface_request import NONE, InterfaceRequest, check_all, from_parts, read_interface
from eschedule.scheduler.request import LaunchRequest, check

SIZE_LIMIT_BYTES = 8 << 20

_PROBLEMS_SHOWN = 20
_SHAPE = {"cpus": "VCPU", "memory": "MEMORY_MB", "disk": "DISK_GB"}
_DEFAULT_SHAPE = {"cpus": 1, "memory": 256, "disk": 1}


class InvalidMembers(InvalidInput):
    """``problems`` has one line for every mistake of the file, each with its line number and its member."""

    code = "gang.members.invalid"

    def __init__(self, path: str, problems: list[str]) -> None:
        shown = problems[:_PROBLEMS_SHOWN]
        more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        super().__init__(f"{path}: " + "; ".join(shown + more))
        self.problems = problems


def read_members(path: str, data: bytes, default: LaunchRequest) -> list[LaunchRequest]:
    """Return the requests that ``data`` holds.

    Args:
        path: for messages.
        default: what a member is where it does not say otherwise. Its query is the shape of those that
            give none of ``cpus``, ``memory``, ``disk`` and ``query``.

    Raises:
        InvalidMembers: with every mistake of the file.
    """
    reading = Reading(PurePath())  # type: ignore[arg-type]
    root = reading.compose(data)
    if root is None and not reading.problems:
        reading.report(1, "holds no members; it is a list, such as `- {name: web-1, cpus: 2}`")
    requests: list[LaunchRequest] = []
    if isinstance(root, yaml.SequenceNode):
        if not 0 < len(root.value) <= MEMBERS_LIMIT:
            reading.report(1, f"has {len(root.value)} members, and 1 to {MEMBERS_LIMIT} are possible")
        else:
            requests = [request for node in root.value if (request := _member(reading, node, default)) is not None]
    elif root is not None:
        reading.report(_line(root), "must be a list of members, each beginning with `-`")
    _find_doubles(reading, root, requests)
    if reading.problems:
        raise InvalidMembers(path, [f"line {line}: {text}" for line, text in sorted(reading.problems)])
    return requests


def _member(reading: Reading, node: Node, default: LaunchRequest) -> LaunchRequest | None:
    """Return one member; None: it has mistakes, and they were reported."""
    known = len(reading.problems)
    section = reading.section(node, "", READS)
    name = str(section.values.get("name", "a member without a name"))
    if len(reading.problems) == known:
        try:
            return check(_request(section, default))
        except (InvalidInput, BadValueError) as error:
            hint = getattr(error, "hint", "")
            reading.report(section.line, f"{error.args[0]}; {hint}" if hint else str(error.args[0]))
    reading.problems[known:] = [(line, f"{name}: {text}") for line, text in reading.problems[known:]]
    return None


def _request(section: Section, default: LaunchRequest) -> LaunchRequest:
    values: dict[str, Any] = dict(section.values)
    shape = {key: values.pop(key) for key in _SHAPE if key in values}
    if shape and "query" in values:
        raise BadValueError(f"query and {', '.join(shape)} were given: say it in one of the two ways")
    if shape:
        amounts = _DEFAULT_SHAPE | shape
        values["query"] = "resources=" + ",".join(f"{name}:{amounts[key]}" for key, name in _SHAPE.items())
    if "pack" in values:
        values["is_packed"] = values.pop("pack")
    if "configdrive" in values:
        values["config_drive"] = values.pop("configdrive")
    if "networks" in values:
        values["interfaces"] = values.pop("networks")
    return replace(default, **{"name": None, **values})


def _find_doubles(reading: Reading, root: Node | None, requests: list[LaunchRequest]) -> None:
    counts = Counter(request.name for request in requests if request.name is not None)
    doubles = {name for name, count in counts.items() if count > 1}
    if not doubles or not isinstance(root, yaml.SequenceNode):
        return
    seen: set[str] = set()
    for node in root.value:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value == "name" and value.value in doubles:
                if value.value in seen:
                    reading.report(_line(value), f"{value.value}: another member has that name")
                seen.add(value.value)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _read_block(node: Node) -> str:
    """Text of several lines."""
    if not isinstance(node, yaml.ScalarNode):
        raise BadValueError("must be text; for several lines write `|` behind the key")
    return str(node.value)


def _read_affinities(node: Node) -> tuple[tuple[str, int], ...]:
    if not isinstance(node, yaml.MappingNode):
        raise BadValueError("must be tags with weights, such as {db: 50, web: -20}")
    weight = read_integer(-100, 100)
    return tuple((read_text(key), int(weight(value))) for key, value in node.value)


def _read_tuple(node: Node) -> tuple[str, ...]:
    return tuple(read_list_of(read_text)(node))


def _read_networks(node: Node) -> tuple[InterfaceRequest, ...]:
    """A list: of networks as on the command line, or of keys and values. None at all: ``none``, or an empty list."""
    if isinstance(node, yaml.ScalarNode) and node.value == NONE:
        return ()
    if not isinstance(node, yaml.SequenceNode):
        raise BadValueError("must be a list, such as [web, {network: db, address: 10.0.0.5}], or none")
    try:
        return check_all([_read_interface(item) for item in node.value])
    except InvalidInput as error:
        raise BadValueError(str(error)) from error


def _read_interface(node: Node) -> InterfaceRequest:
    if not isinstance(node, yaml.MappingNode):
        return read_interface(read_text(node))
    parts: list[tuple[str, str]] = []
    for key, value in node.value:
        values = value.value if isinstance(value, yaml.SequenceNode) else [value]
        parts += [(read_text(key), read_text(one)) for one in values]
    return from_parts(parts)


READS: Mapping[str, Read] = {
    "name": read_text,
    "query": read_text,
    "cpus": read_integer(1, MAX_INT),
    "memory": read_integer(1, MAX_INT),
    "disk": read_integer(1, MAX_INT),
    "image": read_text,
    "host": read_text,
    "pack": read_boolean,
    "group": read_text,
    "tags": _read_tuple,
    "affinities": _read_affinities,
    "expires": read_text,
    "ssh_keys": _read_tuple,
    "user_data": _read_block,
    "configdrive": read_text,
    "networks": _read_networks,
}
