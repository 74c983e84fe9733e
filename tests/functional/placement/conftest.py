"""One real placement for these tests, and a proxy before it that fails on demand.

Tests share the service, so each makes providers of its own and asks ``in_tree`` of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.placement import Inventory, Placement
from ecompute.dev.placement import PlacementProcess


@pytest.fixture
def client(placement: PlacementProcess) -> Iterator[Placement]:
    with Placement(PlacementSettings(endpoint=placement.endpoint)) as client:
        yield client


def new_uuid() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def make_provider(client: Placement) -> Iterator[Callable[..., str]]:
    """Return a maker of providers: ``make_provider(VCPU=4)`` gives a uuid. They go with the test."""
    made: list[str] = []

    def make(**totals: int) -> str:
        provider = new_uuid()
        made.append(provider)
        client.ensure_provider(provider, f"host-{provider}")
        client.set_inventories(provider, {name: Inventory(total=total) for name, total in totals.items()})
        return provider

    yield make
    for provider in made:
        if client.provider(provider) is not None:
            for consumer in client.provider_allocations(provider):
                client.release(consumer)
            client.delete_provider(provider)
