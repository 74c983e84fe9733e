"""As many members of a gang as one transaction of requests takes. Pure.

Members that share a host, a network, a quota share comparisons, and the host's entry in the network:
each is there once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ecompute.cluster import keys
from ecompute.cluster.documents import Instance
from ecompute.cluster.placement import Candidate
from ecompute.cluster.store import Compare, Op, Put, absent, unchanged
from eschedule.cloud.ports import PortRequest
from eschedule.scheduler.beside import Beside, Rows
from eschedule.scheduler.cache import Offer
from eschedule.scheduler.facts import Target
from eschedule.scheduler.order import Order, order_of
from eschedule.scheduler.rank import Reason
from eschedule.scheduler.request import LaunchRequest

USER_DATA_LIMIT_BYTES = 256 * 1024
"""Of all user data of one transaction; etcd takes 1.5 MiB, and JSON may double what has escapes."""


@dataclass
class Placed:
    """A member, and where it goes."""

    request: LaunchRequest
    uuid: str
    expires_at_s: int | None
    beside: Beside
    target: Target
    candidate: Candidate
    offer: Offer
    index: int
    reasons: tuple[Reason, ...]
    rows: Rows = field(default_factory=Rows)
    instance: Instance | None = None
    """Once its request is made."""

    @property
    def provider(self) -> str:
        return self.target.provider

    @property
    def claims(self) -> frozenset[str]:
        """The providers that its claim takes from."""
        return frozenset(self.candidate.allocations) | frozenset(self.rows.allocations)

    def order(self, ports: Sequence[PortRequest], *, gang: str, now_s: float) -> Order:
        """Return what is written for it."""
        return order_of(
            self.request,
            self.uuid,
            self.target,
            self.candidate,
            self.rows,
            ports,
            now_s=now_s,
            expires_at_s=self.expires_at_s,
            group=self.beside.group_uuid,
            gang=gang,
        )


class Batch:
    """One transaction under way.

    Args:
        fits: whether so many members, these compares and these operations are one transaction.
    """

    def __init__(self, fits: Callable[[int, Iterable[Compare], Iterable[Op]], bool]) -> None:
        self.members: list[Placed] = []
        self._fits = fits
        self._compares: dict[Compare, None] = {}
        self._puts: dict[str, Put] = {}
        self._user_data_bytes = 0

    @property
    def compares(self) -> list[Compare]:
        return list(self._compares)

    @property
    def operations(self) -> list[Op]:
        return list(self._puts.values())

    def add(self, member: Placed, order: Order, events: Iterable[Op]) -> bool:
        """Add a member's request; return whether it still fitted, the first one always."""
        compares = self._compares | dict.fromkeys(order.compares)
        puts = self._puts | {op.key: op for op in (*order.operations, *events) if isinstance(op, Put)}
        user_data_bytes = self._user_data_bytes + len((member.request.user_data or "").encode())
        is_too_much = (
            not self._fits(len(self.members) + 1, compares, puts.values()) or user_data_bytes > USER_DATA_LIMIT_BYTES
        )
        if self.members and is_too_much:
            return False
        self._compares, self._puts, self._user_data_bytes = compares, puts, user_data_bytes
        self.members.append(member)
        member.instance = order.instance
        return True


def admin_unchanged(target: Target) -> Compare:
    """What says that operators and the lead have said nothing new of a host."""
    return absent(keys.admin(target.provider)) if target.admin is None else unchanged(target.admin)
