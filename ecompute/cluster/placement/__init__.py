"""placement: how much every host has, who holds it, and the one write that decides a claim.

- `query`      what a user may ask for, checked before placement sees it (pure)
- `documents`  what placement answers, and what can be said about it alone (pure)
- `refusal`    who said no: the host, or a quota (pure)
- `transport`  one HTTP session: deadlines, bounded retries, the errors of it
- `providers`  what providers have, can do and belong to; all hosts at once
- `client`     `Placement`: those, candidates, claims
- `shared`     one session for many users in one process

`Placement` and `ClaimRequest` are loaded when they are first asked for: they bring `requests`, which a
command that only checks a query, or prints its help, does not pay for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ecompute.cluster.placement.documents import (
    MAX_INT,
    PRESENCE,
    Candidate,
    Candidates,
    ConsumerAllocations,
    Inventories,
    Inventory,
    Provider,
    Summary,
    host_of,
)
from ecompute.cluster.placement.query import CandidatesQuery, candidates_query

if TYPE_CHECKING:
    from ecompute.cluster.placement.claiming import ClaimRequest
    from ecompute.cluster.placement.client import Placement

__all__ = [
    "MAX_INT",
    "PRESENCE",
    "Candidate",
    "Candidates",
    "CandidatesQuery",
    "ClaimRequest",
    "ConsumerAllocations",
    "Inventories",
    "Inventory",
    "Placement",
    "Provider",
    "Summary",
    "candidates_query",
    "host_of",
]


def __getattr__(name: str) -> object:
    if name == "ClaimRequest":
        from ecompute.cluster.placement.claiming import ClaimRequest

        return ClaimRequest
    if name == "Placement":
        from ecompute.cluster.placement.client import Placement

        return Placement
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
