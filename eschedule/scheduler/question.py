"""What placement is asked for a launch: the user's query, and what is always added to it. Pure.

Disabled hosts are excluded in every question. Where the unnamed group asks for VCPU its ``required``
says so, which costs placement least; in a query of granular groups alone it is ``root_required``,
which leaves every group as it was written. What narrows a question to some hosts (a shard, one host)
goes to the group that serves VCPU: that group is the host.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ecompute.cluster.closing import DISABLED
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import CandidatesQuery, candidates_query

LIMIT = 50
"""Candidates of one answer. They come at random, and a rank among so many loses little."""
LIMIT_OF_GROUPS = 300
"""Where several groups are asked for, one host is many candidates."""


def for_launch(query: CandidatesQuery) -> CandidatesQuery:
    """Return ``query`` as placement is asked: without disabled hosts.

    Raises:
        InvalidInput: it asks for disabled hosts alone.
    """
    for name, value in query.parameters:
        if name.startswith(("required", "root_required")) and DISABLED in value.split(","):
            raise InvalidInput(f"{name} asks for hosts that take nothing new", hint=f"leave {DISABLED} out")
    if "VCPU" in query.groups.get("", {}):
        return with_parameter(query, "required", f"!{DISABLED}")
    own = [value for name, value in query.parameters if name == "root_required"]
    if own and f"!{DISABLED}" in own[0].split(","):
        return query
    kept = replace(query, parameters=tuple(p for p in query.parameters if p[0] != "root_required"))
    return with_parameter(kept, "root_required", ",".join([*own, f"!{DISABLED}"]))


def requiring(text: str, traits: Collection[str]) -> str:
    """Return the query ``text`` with traits that the host must have besides; as it is, where there are none."""
    if not traits:
        return text
    query = candidates_query(text)
    if "VCPU" in query.groups.get("", {}):
        for trait in sorted(traits):
            query = with_parameter(query, "required", trait)
    else:
        own = [name for key, value in query.parameters if key == "root_required" for name in value.split(",")]
        others = replace(query, parameters=tuple(p for p in query.parameters if p[0] != "root_required"))
        query = with_parameter(others, "root_required", ",".join(dict.fromkeys([*own, *sorted(traits)])))
    return query.text if query.limit is None else f"{query.text}&limit={query.limit}"


def limit_of(query: CandidatesQuery) -> int:
    """Return how many candidates to ask for."""
    return LIMIT if set(query.groups) == {""} else LIMIT_OF_GROUPS


def host_group(query: CandidatesQuery) -> str | None:
    """Return the group that serves VCPU; None: several do."""
    serving = [group for group, amounts in query.groups.items() if "VCPU" in amounts]
    return serving[0] if len(serving) == 1 else None


def names_a_host(query: CandidatesQuery) -> bool:
    """Whether it already asks for one tree, so that no shard is worth asking."""
    return any(name.startswith("in_tree") for name, _ in query.parameters)


def in_shard(query: CandidatesQuery, aggregate: str) -> CandidatesQuery | None:
    """Return ``query`` of the hosts in an aggregate alone; None: it cannot be narrowed so."""
    group = host_group(query)
    if group is None or names_a_host(query):
        return None
    return with_parameter(query, f"member_of{group}", aggregate)


def on_host(query: CandidatesQuery, provider: str) -> CandidatesQuery | None:
    """Return ``query`` of one host alone; None: it cannot be narrowed so.

    Raises:
        InvalidInput: it already names a tree.
    """
    if names_a_host(query):
        raise InvalidInput("a host was given, and the query has in_tree", hint="say it in one of the two ways")
    group = host_group(query)
    return None if group is None else with_parameter(query, f"in_tree{group}", provider)


def aggregates_of(query: CandidatesQuery) -> list[str]:
    """Return the aggregates that it asks to be in, all of them."""
    found: list[str] = []
    for name, value in query.parameters:
        if name.startswith("member_of") and not value.startswith("!"):
            found += value.removeprefix("in:").split(",")
    return found


def with_parameter(query: CandidatesQuery, name: str, value: str) -> CandidatesQuery:
    """Return ``query`` with one more parameter; one that is there already is not added again."""
    if (name, value) in query.parameters:
        return query
    return replace(query, parameters=tuple(sorted([*query.parameters, (name, value)])))
