"""A placement query taken apart into the conditions that a provider must meet. Pure.

The terms are those of ``GET /allocation_candidates``
(https://docs.openstack.org/api-ref/placement/#list-allocation-candidates): what stands without a
suffix may be served by several providers of one tree, and by those that share with it; what has a
suffix by one provider alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ecompute.cluster.placement import CandidatesQuery


@dataclass(frozen=True)
class Part:
    """One group of a query."""

    suffix: str
    """``""``: the one without a suffix."""
    resources: Mapping[str, int] = field(default_factory=dict)
    required: tuple[frozenset[str], ...] = ()
    """Of each, at least one trait."""
    forbidden: frozenset[str] = frozenset()
    member_of: tuple[str, ...] = ()
    """Conditions, each as placement's ``member_of`` takes it: ``UUID`` or ``in:UUID,UUID``."""
    not_member_of: tuple[str, ...] = ()
    in_tree: str | None = None


@dataclass(frozen=True)
class Asked:
    """A whole query."""

    parts: tuple[Part, ...]
    is_isolated: bool = False
    """No two groups with a suffix are served by one provider."""
    root_required: frozenset[str] = frozenset()
    root_forbidden: frozenset[str] = frozenset()
    same_subtree: tuple[frozenset[str], ...] = ()
    """Suffixes of groups whose providers all lie below one of them."""

    @property
    def conditions(self) -> frozenset[str]:
        """All conditions on aggregates, for `members` to be read."""
        return frozenset(c for part in self.parts for c in (*part.member_of, *part.not_member_of))

    @property
    def classes(self) -> frozenset[str]:
        return frozenset(name for part in self.parts for name in part.resources)

    @property
    def traits(self) -> frozenset[str]:
        """All traits that it names, wanted or forbidden."""
        named = set(self.root_required | self.root_forbidden)
        for part in self.parts:
            named.update(part.forbidden, *part.required)
        return frozenset(named)


def asked(query: CandidatesQuery) -> Asked:
    """Return the conditions of ``query``."""
    by_suffix: dict[str, list[tuple[str, str]]] = {suffix: [] for suffix in query.groups}
    whole: list[tuple[str, str]] = []
    for name, value in query.parameters:
        kind = next((k for k in ("resources", "required", "member_of", "in_tree") if name.startswith(k)), None)
        if kind is None:
            whole.append((name, value))
        else:
            by_suffix.setdefault(name[len(kind) :], []).append((kind, value))
    return Asked(
        parts=tuple(
            _part(suffix, query.groups.get(suffix, {}), conditions) for suffix, conditions in sorted(by_suffix.items())
        ),
        is_isolated=("group_policy", "isolate") in whole,
        root_required=_traits(whole, is_forbidden=False),
        root_forbidden=_traits(whole, is_forbidden=True),
        same_subtree=tuple(frozenset(value.split(",")) for name, value in whole if name == "same_subtree"),
    )


def _part(suffix: str, resources: Mapping[str, int], conditions: Iterable[tuple[str, str]]) -> Part:
    required: list[frozenset[str]] = []
    forbidden: set[str] = set()
    member_of: list[str] = []
    not_member_of: list[str] = []
    in_tree = None
    for kind, value in conditions:
        if kind == "required" and value.startswith("in:"):
            required.append(frozenset(value.removeprefix("in:").split(",")))
        elif kind == "required":
            required += [frozenset({name}) for name in value.split(",") if not name.startswith("!")]
            forbidden |= {name[1:] for name in value.split(",") if name.startswith("!")}
        elif kind == "member_of":
            (not_member_of if value.startswith("!") else member_of).append(value.removeprefix("!"))
        elif kind == "in_tree":
            in_tree = value
    return Part(
        suffix, resources, tuple(required), frozenset(forbidden), tuple(member_of), tuple(not_member_of), in_tree
    )


def _traits(whole: Iterable[tuple[str, str]], *, is_forbidden: bool) -> frozenset[str]:
    names = {name for kind, value in whole if kind == "root_required" for name in value.split(",")}
    return frozenset(name.removeprefix("!") for name in names if name.startswith("!") is is_forbidden)
