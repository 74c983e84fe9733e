"""What a user asks of placement, checked before placement sees it.

A query is the query string of ``GET /allocation_candidates`` as in API 1.39:
``resources=VCPU:1,MEMORY_MB:256,DISK_GB:1&required=…``, with granular groups (``resources_A``,
``required_A``). Syntax is checked here, with one clear line for each mistake; whether a class, a
trait or an aggregate exists is placement's to say.

Pure: no clock, no I/O.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from ecompute.cluster.errors import InvalidInput, one_line
from ecompute.cluster.placement.documents import MAX_INT, checked_uuid

EXAMPLE = "write it like resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
MAX_LENGTH = 3500
"""Characters. Servers refuse request lines above 4,094 bytes."""

_GROUPED = ("resources", "required", "member_of", "in_tree")
_WHOLE = ("limit", "group_policy", "root_required", "same_subtree")
_REPEATABLE = ("required", "member_of", "same_subtree")

_NAME = re.compile(r"\A[A-Z0-9_]{1,255}\Z")
_SUFFIX = re.compile(r"\A[a-zA-Z0-9_-]{0,64}\Z")
_DIGITS = re.compile(r"\A[0-9]+\Z")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")

_COMMON_CLASSES = ("VCPU", "MEMORY_MB", "DISK_GB", "PCPU", "VGPU", "SRIOV_NET_VF", "PCI_DEVICE")


@dataclass(frozen=True)
class CandidatesQuery:
    """A query that placement can parse.

    Two that ask the same in another order of parameters, or of classes, are equal.
    """

    parameters: tuple[tuple[str, str], ...]
    """All but ``limit``, sorted."""
    limit: int | None
    groups: Mapping[str, Mapping[str, int]] = field(compare=False)
    """``{group: {class: amount}}``; ``""`` is the unnamed group."""

    @property
    def text(self) -> str:
        """The query in its one form, without ``limit``: fit for a log, or as a key."""
        return "&".join(f"{name}={value}" for name, value in self.parameters)

    @property
    def totals(self) -> dict[str, int]:
        """``{class: amount}`` over all groups."""
        totals: Counter[str] = Counter()
        for resources in self.groups.values():
            totals.update(resources)
        return dict(totals)


@lru_cache(maxsize=256)
def candidates_query(text: str) -> CandidatesQuery:
    """Return what ``text`` asks for.

    The same text gives the same object: a launch asks several times, a gang as often for each member.

    Args:
        text: a query string as a user typed it, percent-encoded or not.

    Raises:
        InvalidInput: it cannot be meant; one line says where, and how it is written.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidInput(
            f"the query is {len(text)} characters long; {MAX_LENGTH} are allowed", hint="ask for fewer traits or groups"
        )
    parameters: list[tuple[str, str]] = []
    groups: dict[str, dict[str, int]] = {}
    limit: int | None = None
    seen: set[str] = set()
    for part in text.split("&"):
        name, value = _split(part)
        prefix, suffix = _parameter(name)
        if name in seen and prefix not in _REPEATABLE:
            raise InvalidInput(f"{name} is given twice", hint="give it once")
        seen.add(name)
        if prefix == "resources":
            groups[suffix] = _resources(name, value)
            value = ",".join(f"{c}:{n}" for c, n in sorted(groups[suffix].items()))
        elif prefix in ("required", "root_required"):
            _check_traits(name, value, may_be_any=prefix == "required")
        elif prefix == "member_of":
            value = _aggregates(name, value)
        elif prefix == "in_tree":
            value = _uuid(name, value)
        elif prefix == "limit":
            limit = _amount("limit", value)
            continue
        elif prefix == "group_policy" and value not in ("none", "isolate"):
            raise InvalidInput(f"group_policy={value!r} is not known", hint="write group_policy=none or isolate")
        parameters.append((name, value))
    _check_groups(groups, parameters)
    query = CandidatesQuery(parameters=tuple(sorted(parameters)), limit=limit, groups=groups)
    if len(query.text) > MAX_LENGTH:
        raise InvalidInput(f"the query is longer than {MAX_LENGTH} characters", hint="ask for fewer traits or groups")
    return query


def _split(part: str) -> tuple[str, str]:
    name, equals, value = part.partition("=")
    if not part:
        raise InvalidInput("the query is empty, or has an empty part", hint=EXAMPLE)
    if not equals:
        raise InvalidInput(f"{one_line(part, 80)!r} in the query has no '='", hint=EXAMPLE)
    return _decoded(name), _decoded(value)


def _decoded(text: str) -> str:
    """Return ``text`` without percent-escapes."""
    try:
        if _BAD_ESCAPE.search(text):
            raise ValueError(text)
        plain = unquote_to_bytes(text).decode("utf-8")
    except ValueError as error:
        raise InvalidInput(
            f"{one_line(text, 80)!r} in the query is not well encoded", hint="a percent sign is written %25"
        ) from error
    if not plain.isprintable():
        raise InvalidInput(f"{one_line(plain, 80)!r} in the query holds a control character", hint="remove it")
    return plain


def _parameter(name: str) -> tuple[str, str]:
    """Return the parameter's kind and the group that it belongs to."""
    if name in _WHOLE:
        return name, ""
    for prefix in _GROUPED:
        if name.startswith(prefix) and _SUFFIX.match(name[len(prefix) :]):
            return prefix, name[len(prefix) :]
    known = [*_GROUPED, *_WHOLE]
    near = difflib.get_close_matches(name, known, n=1)
    raise InvalidInput(
        f"{one_line(name, 80)!r} is not a parameter of a query",
        hint=f"did you mean {near[0]}?" if near else f"these are: {', '.join(known)}",
    )


def _resources(name: str, value: str) -> dict[str, int]:
    resources: dict[str, int] = {}
    for pair in value.split(","):
        resource_class, colon, amount = pair.partition(":")
        if not colon:
            raise InvalidInput(f"{one_line(pair, 80)!r} in {name} is not CLASS:AMOUNT", hint=EXAMPLE)
        if not _NAME.match(resource_class):
            near = difflib.get_close_matches(resource_class.upper(), _COMMON_CLASSES, n=1)
            raise InvalidInput(
                f"{one_line(resource_class, 80)!r} in {name} is not the name of a resource class",
                hint=f"did you mean {near[0]}?" if near else "capitals, digits and _ only, as in VCPU or CUSTOM_FPGA",
            )
        if resource_class in resources:
            raise InvalidInput(f"{resource_class} is given twice in {name}", hint="give it once, with the sum")
        resources[resource_class] = _amount(resource_class, amount)
    return resources


def _amount(what: str, text: str) -> int:
    if not _DIGITS.match(text):
        raise InvalidInput(
            f"{one_line(text, 80)!r} is not an amount of {what}", hint="write a whole number of at least 1, in digits"
        )
    # A number of any length is compared by its digits first: converting thousands of them takes long.
    digits = text.lstrip("0")
    if not digits:
        raise InvalidInput(f"{what} is zero", hint="ask for at least 1, or leave it out")
    if len(digits) > len(str(MAX_INT)) or int(digits) > MAX_INT:
        raise InvalidInput(f"{one_line(text, 80)} is more {what} than can be", hint=f"at most {MAX_INT}")
    return int(digits)


def _check_traits(name: str, value: str, *, may_be_any: bool) -> None:
    is_any = may_be_any and value.startswith("in:")
    for trait in value.removeprefix("in:").split(",") if is_any else value.split(","):
        if not _NAME.match(trait if is_any else trait.removeprefix("!")):
            raise InvalidInput(
                f"{one_line(trait, 80)!r} in {name} is not the name of a trait",
                hint="capitals, digits and _ only; !TRAIT forbids it"
                + ("; in:A,B asks for any of them" if may_be_any else ""),
            )


def _uuid(name: str, text: str) -> str:
    try:
        return checked_uuid(text.lower())
    except InvalidInput as error:
        raise InvalidInput(
            f"{one_line(text, 80)!r} in {name} is not a uuid", hint="`eschedule hosts` shows those of hosts"
        ) from error


def _aggregates(name: str, value: str) -> str:
    forbids = "!" if value.startswith("!") else ""
    rest = value.removeprefix("!")
    if rest.startswith("in:"):
        return f"{forbids}in:" + ",".join(_uuid(name, part) for part in rest.removeprefix("in:").split(","))
    if "," in rest:
        raise InvalidInput(f"several aggregates in {name} need 'in:'", hint=f"write {name}={forbids}in:UUID,UUID")
    return forbids + _uuid(name, rest)


def _check_groups(groups: Mapping[str, Mapping[str, int]], parameters: list[tuple[str, str]]) -> None:
    """See that all parts belong together as placement wants it."""
    if not groups:
        raise InvalidInput("the query asks for no resources", hint=EXAMPLE)
    suffixes = {_parameter(name)[1] for name, _ in parameters}
    joined = {suffix for name, value in parameters if name == "same_subtree" for suffix in value.split(",")}
    for suffix in sorted(joined - (suffixes - {""})):
        raise InvalidInput(
            f"same_subtree names group {one_line(suffix, 80)!r}, which is not in the query", hint=EXAMPLE
        )
    for name, _ in parameters:
        suffix = _parameter(name)[1]
        if name not in _WHOLE and suffix not in groups and suffix not in joined:
            raise InvalidInput(f"{name} has no resources{suffix} beside it", hint=f"add resources{suffix}=…")
    if sum(1 for suffix in groups if suffix) > 1 and not any(name == "group_policy" for name, _ in parameters):
        raise InvalidInput("a query with several groups needs group_policy", hint="add group_policy=none (or isolate)")
