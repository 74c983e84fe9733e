"""Who may read and write what in etcd: the one place where a role's ranges are drawn.

Three roles. A *host* reads what is meant for it and the networks, and writes its own reports; it is
not trusted with more. *Upkeep* is what the lead needs to finish, to audit and to give back, and
nothing that hosts alone write. A *tool* may do everything but make users. ``docs/key-schema.md`` has the same
as a table, made by `table`; a test holds it, and the column "written by" there, against this module.

etcd knows ranges: all keys with a common beginning. Whatever a host writes therefore has
its provider first in the key, but for ``/booted/``, on which nothing decides.

Pure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from ecompute.cluster import keys

UPKEEP = "ecompute-upkeep"
"""The role of whoever may lead."""
TOOL = "ecompute-tool"
"""The role of whoever asks: `eschedule`."""
_HOST = "ecompute-host-"
_HOST_USER = "host-"
_UPKEEP_USER = "upkeep-"


class Access(Enum):
    """As etcd has it; deleting is writing."""

    READ = "read"
    WRITE = "write"
    BOTH = "read and write"

    @property
    def has_read(self) -> bool:
        return self is not Access.WRITE

    @property
    def has_write(self) -> bool:
        return self is not Access.READ


@dataclass(frozen=True)
class Grant:
    """``access`` to every key that begins with ``key``.

    Also where it does not end in a slash: a watch asks for all that begins so. It then ends in a
    provider's uuid, of which none is the beginning of another.
    """

    key: str
    access: Access

    def covers(self, key: str) -> bool:
        return key.startswith(self.key)


def host(provider: str) -> tuple[Grant, ...]:
    """Return what the daemon of that provider needs, and nothing else."""
    return (
        *_each(
            Access.READ,
            keys.CLUSTER,
            keys.assignments(provider),
            keys.secrets_for(provider),
            keys.admin(provider),
            keys.NETWORKS,
            keys.ZONES,
            keys.GANGS,
            keys.LEAD,
        ),
        *_each(
            Access.BOTH,
            keys.seen_by(provider),
            keys.node(provider),
            keys.audit(provider),
            keys.alive(provider),
            keys.load(provider),
            keys.copies(provider),
            keys.operations(provider),
            keys.events_by(provider),
        ),
        Grant(keys.BOOTED, Access.WRITE),
    )


def upkeep() -> tuple[Grant, ...]:
    """Return what the lead needs."""
    return (
        Grant("/", Access.READ),
        *_each(
            Access.WRITE,
            keys.INSTANCES,
            keys.HOSTS,
            keys.SECRETS,
            keys.SEEN,
            keys.BOOTED,
            keys.ADMIN,
            keys.NETWORKS,
            keys.FLOATING,
            keys.NAMES,
            keys.QUOTAS,
            keys.GROUPS,
            keys.TAGS,
            keys.GANGS,
            keys.UUIDS,
            keys.IDEMPOTENCY,
            keys.EXPIRIES,
            keys.INTENTS,
            keys.OPERATIONS,
            keys.LEAD,
            keys.EVENTS,
        ),
    )


def tool() -> tuple[Grant, ...]:
    """Return what `eschedule` needs: all of it. Users and roles are root's alone."""
    return (Grant("/", Access.BOTH),)


def may_read(grants: Iterable[Grant], key: str) -> bool:
    """Whether ``grants`` let ``key`` be read, and all that begins with it."""
    return any(grant.access.has_read and grant.covers(key) for grant in grants)


def may_write(grants: Iterable[Grant], key: str) -> bool:
    """Whether ``grants`` let ``key`` be written or deleted, and all that begins with it."""
    return any(grant.access.has_write and grant.covers(key) for grant in grants)


def host_role(provider: str) -> str:
    """The name of the role; it says whose it is, so that nothing else need be kept."""
    return _HOST + provider


def provider_of(role: str) -> str | None:
    """Return the provider that a host's role is drawn around; None: it is no host's."""
    provider = role.removeprefix(_HOST)
    return provider if provider != role and keys.is_uuid(provider) else None


def host_user(name: str) -> str:
    """The user of the host called ``name``. The prefix keeps a host called root from being root."""
    return _HOST_USER + name


def upkeep_user(name: str) -> str:
    """The user of the lead on the host called ``name``."""
    return _UPKEEP_USER + name


def table() -> str:
    """Return the ranges of a host and of the lead, for ``docs/key-schema.md``."""
    rows = ["| keys | a host | the lead |", "|---|---|---|"]
    hosts, leads = host("<provider>"), upkeep()
    for key in dict.fromkeys(grant.key for grant in sorted((*hosts, *leads), key=lambda grant: grant.key)):
        rows.append(f"| `{key}` | {_said(hosts, key)} | {_said(leads, key)} |")
    return "\n".join(rows) + "\n"


def _each(access: Access, *ranges: str) -> tuple[Grant, ...]:
    return tuple(Grant(key, access) for key in ranges)


def _said(grants: tuple[Grant, ...], key: str) -> str:
    says = [word for word, may in (("read", may_read), ("write", may_write)) if may(grants, key)]
    return f"may {' and '.join(says)}" if says else "-"


if __name__ == "__main__":
    sys.stdout.write(table())
