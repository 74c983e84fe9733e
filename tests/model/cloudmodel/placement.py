"""Placement: capacity, allocations with consumer generations, and answers that get lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

OURS = "ECOMPUTE_INSTANCE"


class RefusedError(Exception):
    """409: no room, or another generation."""


@dataclass(frozen=True)
class Allocation:
    provider: str
    generation: int
    consumer_type: str = OURS


@dataclass
class Placement:
    capacity: dict[str, int]
    on_release: Callable[[str, Allocation], None]
    on_claim: Callable[[str, str], None]
    allocations: dict[str, Allocation] = field(default_factory=dict)

    def used(self, provider: str) -> int:
        return sum(1 for allocation in self.allocations.values() if allocation.provider == provider)

    def claim(self, consumer: str, provider: str) -> None:
        """``PUT`` with ``consumer_generation: null``: creates, and nothing else."""
        if consumer in self.allocations or self.used(provider) >= self.capacity[provider]:
            raise RefusedError
        self._take(consumer, provider)

    def claim_many(self, claims: Mapping[str, str]) -> None:
        """``POST`` for several consumers ({consumer: provider}): all or none."""
        wanted = Counter(claims.values())
        if claims.keys() & self.allocations.keys() or any(
            self.used(provider) + count > self.capacity[provider] for provider, count in wanted.items()
        ):
            raise RefusedError
        for consumer, provider in claims.items():
            self._take(consumer, provider)

    def _take(self, consumer: str, provider: str) -> None:
        self.allocations[consumer] = Allocation(provider, 1)
        self.on_claim(consumer, provider)

    def release(self, consumer: str, generation: int) -> None:
        """``PUT`` of nothing, with the generation that was read."""
        found = self.allocations.get(consumer)
        if found is None or found.generation != generation:
            raise RefusedError
        self.on_release(consumer, found)
        del self.allocations[consumer]
