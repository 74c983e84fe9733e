"""Making a host's own user, role and credentials in etcd, and taking them back.

Nothing is kept of it but the user and the role: the user's role names the provider that it is drawn
around. What can fail without harm comes first, and a user has no right before it is given its role;
cut off anywhere, the same command completes it.

Threads: one call at a time.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from ecompute.cluster import keys, roles
from ecompute.cluster.documents import Incarnation, Node, timestamp
from ecompute.cluster.errors import Ambiguous, CompareFailed, Conflict, InvalidInput, NotFound, NotPermitted
from ecompute.cluster.store import Put, absent
from eschedule.cloud.certificates import CA_CERT, DAYS, Authority, private, write_private
from eschedule.cloud.connection import Cloud, who

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,55}")
"""What may stand in a certificate's common name, of 64 characters, behind ``upkeep-``."""


@dataclass(frozen=True)
class Enrolled:
    """A host that may come."""

    name: str
    provider: str
    user: str
    role: str
    upkeep_user: str | None
    directory: Path
    files: list[str] = field(default_factory=list)
    """In the directory: what the host needs beside its ``compute.yaml``."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What its ``compute.yaml`` says of who it is; paths are relative to that file."""


@dataclass(frozen=True)
class Revoked:
    name: str
    provider: str | None
    users: list[str]
    """That are gone, and with them every certificate and password of theirs."""


class Enrolment:
    """Hosts' users and roles. Etcd lets root make them; everybody, while authentication is off."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._users = cloud.store.users

    def enrol(
        self,
        name: str,
        *,
        out: Path,
        provider: str | None = None,
        ca: Path | None = None,
        has_password: bool = False,
        has_upkeep: bool = False,
        days: int = DAYS,
    ) -> Enrolled:
        """Make the user, the role and the credentials of the host called ``name``.

        Args:
            out: where the files go that the host needs; made if it is missing.
            provider: its resource provider; None: that of the role it has, of the host that has registered, or
                that placement knows, by this name; else a new one.
            ca: the directory of the authority that signs certificates; made if it is empty. None: no certificate.
            has_password: whether the users get passwords.
            has_upkeep: whether it gets credentials to lead the upkeep as well.
            days: how long certificates hold.

        Raises:
            InvalidInput: there is neither an authority nor a password, or the name cannot be one.
            Conflict: the name is another provider's.
            NotPermitted: our own user may not make users.
            StoreUnavailable, PlacementUnavailable: does not answer.
        """
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"{name[:80]!r} cannot be the name of an enrolled host",
                hint="take letters, digits, '.', '_' and '-', at most 56",
            )
        if ca is None and not has_password:
            raise InvalidInput(
                f"how is {name} to show who it is?", hint="say --ca DIRECTORY for a certificate, or --password"
            )
        authority = None if ca is None else Authority(ca)
        with _as_root():
            uuid = self._provider(name, provider)
            self._begin_incarnation()
            private(out)
            self._users.set_role(roles.host_role(uuid), roles.host(uuid))
            etcd = self._credentials(
                "etcd", roles.host_user(name), roles.host_role(uuid), out, authority, has_password, days
            )
            upkeep = None
            if has_upkeep:
                self._users.set_role(roles.UPKEEP, roles.upkeep())
                upkeep = self._credentials(
                    "upkeep", roles.upkeep_user(name), roles.UPKEEP, out, authority, has_password, days
                )
        etcd = self._endpoints(out, authority) | etcd
        settings: dict[str, Any] = {"name": name, "uuid": uuid, "etcd": etcd}
        if upkeep is not None:
            settings["upkeep"] = upkeep
        said = [*etcd.items(), *(upkeep or {}).items()]
        return Enrolled(
            name=name,
            provider=uuid,
            user=roles.host_user(name),
            role=roles.host_role(uuid),
            upkeep_user=roles.upkeep_user(name) if has_upkeep else None,
            directory=out,
            files=list(dict.fromkeys(value for key, value in said if key in ("ca", "cert", "key", "password_file"))),
            settings=settings,
        )

    def revoke(self, name: str) -> Revoked:
        """Take the user and role of the host called ``name`` back, and those with which it leads. Idempotent.

        Raises:
            NotFound: there is no such user.
            NotPermitted: our own user may not.
        """
        with _as_root():
            user, upkeep = roles.host_user(name), roles.upkeep_user(name)
            found = {one: self._users.roles_of(one) for one in (user, upkeep)}
            if found[user] is None and found[upkeep] is None:
                raise NotFound(f"etcd has no user {user}", hint="`etcdctl user list` has those there are")
            provider = _provider_of(found[user])
            for one in (upkeep, user):
                self._users.delete(one)
            if provider is not None:
                self._users.delete_role(roles.host_role(provider))
        return Revoked(name, provider, [one for one in (user, upkeep) if found[one] is not None])

    # --- inside --------------------------------------------------------------------------------

    def _provider(self, name: str, wanted: str | None) -> str:
        known = _provider_of(self._users.roles_of(roles.host_user(name)))
        if known is not None:
            if wanted not in (None, known):
                raise Conflict(
                    f"{name} is enrolled already, as provider {known}", hint=f"`eschedule host revoke {name}` first"
                )
            return known
        if wanted is not None:
            return str(UUID(wanted))
        registered = [
            item.value.provider
            for item in self._cloud.store.list(keys.NODES, Node).items
            if item.value.name == name and keys.is_uuid(item.value.provider)
        ]
        if len(registered) > 1:
            raise Ambiguous(f"several hosts are called {name}", hint=f"say which: --provider {registered[0]}")
        if registered:
            return registered[0]
        provider = self._cloud.placement.provider_by_name(name)
        return str(uuid4()) if provider is None else provider.uuid

    def _begin_incarnation(self) -> None:
        """A host's user may not begin the cluster's data: see to it that it has begun."""
        if self._cloud.store.get(keys.INCARNATION, Incarnation) is not None:
            return
        made = Incarnation(id=str(uuid4()), made_by=who(), made_at=timestamp(time.time()))
        with suppress(CompareFailed):  # a host was first
            self._cloud.store.commit([absent(keys.INCARNATION)], [Put(keys.INCARNATION, made)])

    def _credentials(
        self, kind: str, user: str, role: str, out: Path, authority: Authority | None, has_password: bool, days: int
    ) -> dict[str, str]:
        """Make ``user`` with ``role`` and the files that it needs; return how ``compute.yaml`` names them."""
        said: dict[str, str] = {}
        if has_password:
            file = out / f"{kind}-password"
            if not file.exists() or not (password := file.read_text(encoding="utf-8").strip()):
                password = secrets.token_urlsafe(24)
                write_private(file, password + "\n")
            # Made anew: one that was made for a certificate takes no password, however often it is set.
            self._users.delete(user)
            self._users.add(user, password)
            said |= {"user": user, "password_file": file.name}
        else:
            self._users.add(user)
        self._users.give(user, role)
        if authority is not None:
            cert, key = out / f"{kind}.pem", out / f"{kind}.key"
            authority.certify(user, cert, key, days=days)
            said |= {"cert": cert.name, "key": key.name}
        return said

    def _endpoints(self, out: Path, authority: Authority | None) -> dict[str, Any]:
        ours = self._cloud.settings.etcd
        said: dict[str, Any] = {"endpoints": list(ours.endpoints)}
        ca = ours.ca or (authority.cert if authority is not None else None)
        if ca is not None:
            shutil.copyfile(ca, out / CA_CERT)
            said["ca"] = CA_CERT
        return said


def _provider_of(given: frozenset[str] | None) -> str | None:
    return next((found for role in sorted(given or ()) if (found := roles.provider_of(role)) is not None), None)


@contextmanager
def _as_root() -> Iterator[None]:
    try:
        yield
    except NotPermitted as error:
        raise NotPermitted(
            "users and roles in etcd are made by root alone",
            keys=error.keys,
            hint="name a configuration with root's credentials: --config",
        ) from error
