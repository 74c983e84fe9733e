"""What `ecompute check` says of etcd's users: are they asked for, and do this host's suffice.

`look` asks etcd, which reads and writes nothing for it; `judge` is pure. An etcd that does not answer
is no problem of the machine's: the daemon waits for it.

Threads: any.
"""

from __future__ import annotations

from dataclasses import dataclass

from ecompute.check import Result
from ecompute.cluster import keys, roles
from ecompute.cluster.config import Config, EtcdSettings
from ecompute.cluster.errors import CloudError, some_of
from ecompute.cluster.roles import Access, Grant
from ecompute.cluster.store import Store
from ecompute.registrar import IDENTITY_FILE

TIMEOUT_S = 3.0
TOO_MUCH = (Grant(keys.INSTANCES, Access.WRITE), Grant(keys.SECRETS, Access.READ), Grant(keys.HOSTS, Access.WRITE))
"""What no host needs, and a user has that has more than a host's role."""


@dataclass(frozen=True)
class Found:
    """What etcd says."""

    silence: str | None = None
    """Why it could not be asked."""
    is_enabled: bool = False
    provider: str | None = None
    """Whose role it is about; None: this host has no provider yet."""
    lacking: tuple[Grant, ...] = ()
    """What a host needs and our user may not."""
    too_much: tuple[Grant, ...] = ()
    has_upkeep: bool = False
    """Whether the configuration names credentials for the lead."""
    upkeep_lacking: tuple[Grant, ...] = ()
    upkeep_problem: str | None = None
    """Why the lead's credentials cannot be tried."""


def checks(config: Config) -> list[Result]:
    """Return what is to be said of this host's users in etcd."""
    return judge(look(config), config.name)


def judge(found: Found, name: str | None) -> list[Result]:
    """Return a result for the host's user and one for the lead's. Pure."""
    users, lead = "etcd users", "etcd users, the lead"
    if found.silence is not None:
        return [Result(users, note=f"cannot be looked at: {found.silence}")]
    if not found.is_enabled:
        return [Result(users, note="etcd asks nobody who they are; who reaches it may do everything")]
    again = f"`eschedule host enrol {name or 'NAME'}`, as root"
    if found.provider is None:
        return [Result(users, f"this host has no uuid yet that a role could be drawn around; {again}")]
    if found.lacking:
        host = Result(users, f"this host's user may not {_said(found.lacking)}; {again}")
    elif found.too_much:
        host = Result(users, note=f"this host's user may more than a host needs: {_said(found.too_much)}; {again}")
    else:
        host = Result(users, note="this host's role suffices")
    if not found.has_upkeep:
        return [host, Result(lead, note="no credentials for it: others lead")]
    if found.upkeep_problem is not None:
        return [host, Result(lead, found.upkeep_problem)]
    problem = f"the lead's user may not {_said(found.upkeep_lacking)}; {again} with --upkeep"
    return [host, Result(lead, problem if found.upkeep_lacking else None)]


def look(config: Config) -> Found:
    """Ask etcd. Nothing is written, and nothing of what lies there is read."""
    provider = config.uuid or _identity(config)
    needed = () if provider is None else roles.host(provider)
    try:
        with Store(config.etcd, timeout_s=TIMEOUT_S) as store:
            if not store.users.is_enabled():
                return Found()
            lacking = tuple(grant for grant in needed if not store.users.may(grant))
            too_much = tuple(grant for grant in TOO_MUCH if store.users.may(grant))
    except CloudError as error:
        return Found(silence=str(error))
    upkeep_lacking, upkeep_problem = _upkeep(config.upkeep)
    return Found(
        is_enabled=True,
        provider=provider,
        lacking=lacking,
        too_much=too_much,
        has_upkeep=config.upkeep is not None,
        upkeep_lacking=upkeep_lacking,
        upkeep_problem=upkeep_problem,
    )


def _upkeep(settings: EtcdSettings | None) -> tuple[tuple[Grant, ...], str | None]:
    if settings is None:
        return (), None
    try:
        with Store(settings, timeout_s=TIMEOUT_S) as store:
            return tuple(grant for grant in roles.upkeep() if not store.users.may(grant)), None
    except CloudError as error:
        return (), str(error)


def _identity(config: Config) -> str | None:
    """Return the uuid that this host has kept; it is not made up here."""
    try:
        text = (config.state_dir / IDENTITY_FILE).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return text if keys.is_uuid(text) else None


def _said(grants: tuple[Grant, ...]) -> str:
    """Return at most three of ``grants`` in words."""
    return some_of([f"{grant.access.value} {grant.key}" for grant in grants], 3)
