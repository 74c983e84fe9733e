"""What a claim carries beside its host's rows: those of a quota and of a group.

`Beside` is read once a launch; `Beside.prepare` then gives the rows for one host. They are claimed in
the same write as the host's, and what they rest on is compared in the request's transaction: when that
fails because of them, the claim is given back and all is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from ecompute.cluster.store import Compare, Op
from eschedule.cloud.connection import Cloud


def _no_operations(uuid: str, provider: str) -> tuple[Op, ...]:
    return ()


@dataclass(frozen=True)
class Rows:
    """What is claimed beside one host, and what the request says of it."""

    allocations: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """``{provider: {class: amount}}``"""
    stop: frozenset[str] = frozenset()
    """Those of them whose refusal no other host can mend."""
    compares: tuple[Compare, ...] = ()
    operations: Callable[[str, str], tuple[Op, ...]] = _no_operations
    """What the request writes, by the instance's uuid and its host's provider."""


class Beside:
    """What one launch's namespace and group ask for."""

    group_uuid: str | None = None
    excluded: frozenset[str] = frozenset()
    """Hosts that it cannot be; a hint, placement decides."""
    only: frozenset[str] | None = None
    """The hosts that alone it can be; None: any."""

    @classmethod
    def read(cls, cloud: Cloud, *, namespace: str, group_ref: str | None, totals: Mapping[str, int]) -> Self:
        """Return what is claimed beside a host in ``namespace``.

        Args:
            group_ref: a group's name or uuid.
            totals: what the instance asks for, ``{class: amount}``.
        """
        return cls()

    def weight(self, provider: str, zone: str | None) -> float:
        """Return what a soft group says of a host: -1 (away from it) to 1 (there)."""
        return 0.0

    def prepare(self, provider: str, zone: str | None) -> Rows:
        """Return the rows for one host, having made in placement what they need there."""
        return Rows()
