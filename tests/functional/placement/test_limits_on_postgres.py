"""Rows beside a host's, raced for on PostgreSQL: several workers really write at the same time there."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.errors import ClaimRefused
from ecompute.cluster.placement import ClaimRequest, Inventory, Placement
from ecompute.dev.postgres import placement_on_postgres

QUOTA = "CUSTOM_QUOTA_VCPU"


@pytest.fixture(scope="module")
def client() -> Iterator[Placement]:
    with TemporaryDirectory(prefix="limits-") as directory:
        Path(directory).chmod(0o755)  # the database runs as another account
        with (
            placement_on_postgres(Path(directory), workers=2, threads=4, is_durable=False) as process,
            Placement(PlacementSettings(endpoint=process.endpoint)) as client,
        ):
            yield client


def provider(client: Placement, name: str, total: int) -> str:
    made = str(uuid.uuid4())
    client.ensure_provider(made, f"provider-{made}")
    client.set_inventories(made, {name: Inventory(total=total)})
    return made


def race(count: int, take: Callable[[int], None]) -> Counter[str]:
    """Return how many of ``count`` were taken, and how the others were refused."""

    def one(n: int) -> str:
        try:
            take(n)
        except ClaimRefused as error:
            return error.scope
        return "taken"

    with ThreadPoolExecutor(8) as pool:
        return Counter(pool.map(one, range(count)))


def test_eight_at_once_never_pass_a_quota_and_leave_nothing_of_it(client: Placement) -> None:
    hosts = [provider(client, "VCPU", 64) for _ in range(4)]
    for _ in range(3):
        quota = provider(client, QUOTA, 5)

        def take(n: int, quota: str = quota) -> None:
            rows = {hosts[n % 4]: {"VCPU": 1}, quota: {QUOTA: 1}}
            client.claim(str(uuid.uuid4()), rows, project_id="p", user_id="u", stop={quota})

        assert race(16, take) == {"taken": 5, "quota": 11}
        assert client.usages(quota) == {QUOTA: 5}


def test_gangs_at_once_pass_a_quota_whole_or_not_at_all(client: Placement) -> None:
    hosts = [provider(client, "VCPU", 64) for _ in range(4)]
    quota = provider(client, QUOTA, 9)

    def take(n: int) -> None:
        rows = [{hosts[(n + k) % 4]: {"VCPU": 1}, quota: {QUOTA: 1}} for k in range(4)]
        claims = [ClaimRequest(str(uuid.uuid4()), one, project_id="p", user_id="u") for one in rows]
        client.claim_many(claims, stop={quota})

    assert race(6, take) == {"taken": 2, "quota": 4}
    assert client.usages(quota) == {QUOTA: 8}


def test_eight_at_once_for_one_place_of_a_group_are_one(client: Placement) -> None:
    host, place = provider(client, "VCPU", 64), provider(client, "CUSTOM_AAG_TEST", 1)

    def take(n: int) -> None:
        rows = {host: {"VCPU": 1}, place: {"CUSTOM_AAG_TEST": 1}}
        client.claim(str(uuid.uuid4()), rows, project_id="p", user_id="u")

    assert race(8, take) == {"taken": 1, "host": 7}
    assert client.usages(host) == {"VCPU": 1}
