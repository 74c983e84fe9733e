"""Providers by the thousand: one that was registered, and its rows again under other uuids and names.

Registering is ten requests a host, minutes for a thousand, and not what is measured here. So one host
is registered as its daemon does, and the others are its rows in placement's database: provider,
inventories, traits and aggregates. `check` in `crowd` reads one of each through placement's API and
compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extras import execute_values


def connect(postgres_directory: Path) -> Any:
    """Return a connection to a cluster that `ecompute.dev.postgres` has started there."""
    return psycopg2.connect(host=str(postgres_directory), port=5432, user="postgres", dbname="postgres")


def clone(
    database: Any, pattern: str, hosts: Sequence[tuple[str, str]], aggregates_of: Callable[[str], Iterable[str]]
) -> None:
    """Write for each of ``hosts``, a uuid and a name, what ``pattern`` has.

    Args:
        aggregates_of: what a provider's aggregates are to be.
    """
    with database, database.cursor() as cursor:
        cursor.execute("select id from resource_providers where uuid = %s", (pattern,))
        (pattern_id,) = cursor.fetchone()
        execute_values(
            cursor,
            "insert into resource_providers (created_at, updated_at, uuid, name, generation) values %s",
            [(uuid, name) for uuid, name in hosts],
            template="(now(), now(), %s, %s, 2)",
        )
        uuids = [uuid for uuid, _ in hosts]
        ids = "select id from resource_providers where uuid = any(%s)"
        cursor.execute("update resource_providers set root_provider_id = id where uuid = any(%s)", (uuids,))
        inventory = "resource_class_id, total, reserved, min_unit, max_unit, step_size, allocation_ratio"
        cursor.execute(
            f"insert into inventories (created_at, updated_at, resource_provider_id, {inventory}) "
            f"select now(), now(), h.id, {inventory} from inventories, ({ids}) h where resource_provider_id = %s",
            (uuids, pattern_id),
        )
        cursor.execute(
            "insert into resource_provider_traits (created_at, trait_id, resource_provider_id) "
            f"select now(), trait_id, h.id from resource_provider_traits, ({ids}) h where resource_provider_id = %s",
            (uuids, pattern_id),
        )
        members = [(uuid, aggregate) for uuid in uuids for aggregate in aggregates_of(uuid)]
        if members:
            execute_values(
                cursor,
                "insert into placement_aggregates (created_at, uuid) values %s on conflict do nothing",
                [(aggregate,) for aggregate in sorted({aggregate for _, aggregate in members})],
                template="(now(), %s)",
            )
            execute_values(
                cursor,
                "insert into resource_provider_aggregates (created_at, resource_provider_id, aggregate_id) "
                "select now(), p.id, a.id from (values %s) m (provider, aggregate) "
                "join resource_providers p on p.uuid = m.provider join placement_aggregates a on a.uuid = m.aggregate",
                members,
                page_size=len(members),
            )
    analyze(database)


def hold(database: Any, claims: Sequence[tuple[str, str]], resources: dict[str, int], project: str) -> None:
    """Write an allocation for each of ``claims``, a consumer and its provider, as a claim would have.

    Args:
        resources: what each holds.
        project: whose; it has claimed something already, as have the type and the user.
    """
    with database, database.cursor() as cursor:
        execute_values(
            cursor,
            "insert into consumers (created_at, uuid, project_id, user_id, generation, consumer_type_id) "
            "select now(), c.uuid, k.project_id, k.user_id, 1, k.consumer_type_id from (values %s) c (uuid), "
            "(select k.* from consumers k join projects p on p.id = k.project_id "
            f"where p.external_id = '{project}' limit 1) k",
            [(consumer,) for consumer, _ in claims],
            page_size=len(claims),
        )
        for name, amount in resources.items():
            execute_values(
                cursor,
                "insert into allocations (created_at, resource_provider_id, consumer_id, resource_class_id, used) "
                "select now(), p.id, c.consumer, r.id, c.used from (values %s) c (consumer, provider, name, used) join "
                "resource_providers p on p.uuid = c.provider join resource_classes r on r.name = c.name",
                [(consumer, provider, name, amount) for consumer, provider in claims],
                page_size=len(claims),
            )
    analyze(database)


def analyze(database: Any) -> None:
    """Let the planner know what is there: autovacuum would, a minute later."""
    database.autocommit = True
    with database.cursor() as cursor:
        cursor.execute("analyze")
    database.autocommit = False
