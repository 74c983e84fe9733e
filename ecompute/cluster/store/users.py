"""Etcd's users and roles, and whether our own user may do something.

Users and roles are made by root, or by anybody while authentication is off. Every method is
idempotent: what is so already stays so.

Threads: as the store's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from ecompute.cluster import keys
from ecompute.cluster.errors import InvalidInput, NotPermitted
from ecompute.cluster.roles import Access, Grant
from ecompute.cluster.store.etcd3_loader import rpc
from ecompute.cluster.store.members import Member, Members
from ecompute.cluster.store.transactions import never, prefix_end, range_of

_NO_PASSWORD = b"\x1a\x02\x08\x01"
"""``options {no_password: true}`` (field 3) of a new user: newer than our messages, so it travels as unknown field."""

_EXISTS = "already exists"
_IS_MISSING = ("role name not found", "user name not found", "is not granted to the user", "is not granted to the role")


class Users:
    """Made by `Store.users`."""

    def __init__(self, members: Members) -> None:
        self._members = members

    # --- root's --------------------------------------------------------------------------------

    def roles_of(self, user: str) -> frozenset[str] | None:
        """Return the roles of ``user``; None: there is no such user.

        Raises:
            NotPermitted: only root asks about others.
            StoreUnavailable: etcd does not answer.
        """
        answer = self._ask("UserGet", rpc.AuthUserGetRequest(name=user))
        return None if answer is None else frozenset(answer.roles)

    def add(self, user: str, password: str | None = None) -> None:
        """Make ``user``, if there is none.

        Args:
            password: None: who shows a certificate with its name, and nobody else, is this user.
        """
        if password is None:
            request = rpc.AuthUserAddRequest.FromString(
                rpc.AuthUserAddRequest(name=user).SerializeToString() + _NO_PASSWORD
            )
        else:
            request = rpc.AuthUserAddRequest(name=user, password=password)
        self._ask("UserAdd", request)

    def delete(self, user: str) -> None:
        self._ask("UserDelete", rpc.AuthUserDeleteRequest(name=user))

    def give(self, user: str, role: str) -> None:
        self._ask("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=user, role=role))

    def grants_of(self, role: str) -> frozenset[Grant] | None:
        """Return what ``role`` may; None: there is no such role.

        A range that is not all keys with a common beginning has no `Grant`; it is given back as one of no
        key that there is, so that it equals none of ours.
        """
        answer = self._ask("RoleGet", rpc.AuthRoleGetRequest(role=role))
        return None if answer is None else frozenset(_grant(permission) for permission in answer.perm)

    def set_role(self, role: str, grants: tuple[Grant, ...]) -> None:
        """Make ``role``, and have it permit ``grants``, and nothing else.

        Cut off in between, it permits less, or still what it had to lose; doing it again completes it.
        """
        found = self._ask("RoleGet", rpc.AuthRoleGetRequest(role=role))
        if found is None:
            self._ask("RoleAdd", rpc.AuthRoleAddRequest(name=role))
        permitted = {(bytes(one.key), bytes(one.range_end)): one.permType for one in (found.perm if found else ())}
        wanted = {_range(grant): _TYPES[grant.access] for grant in grants}
        for key, range_end in permitted.keys() - wanted.keys():
            # These fields are strings in the wheel's messages and bytes in etcd; on the wire they are the same.
            range_ = {"key": key.decode(), "range_end": range_end.decode()}
            self._ask("RoleRevokePermission", rpc.AuthRoleRevokePermissionRequest(role=role, **range_))
        for (key, range_end), type_ in wanted.items():
            if permitted.get((key, range_end)) != type_:
                request = rpc.AuthRoleGrantPermissionRequest(name=role)
                request.perm.permType, request.perm.key, request.perm.range_end = type_, key, range_end
                self._ask("RoleGrantPermission", request)

    def delete_role(self, role: str) -> None:
        self._ask("RoleDelete", rpc.AuthRoleDeleteRequest(role=role))

    # --- anybody's -----------------------------------------------------------------------------

    def is_enabled(self) -> bool:
        """Whether etcd asks who we are.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        enabled = self._members.call(_is_nobody_refused, rpc.AuthenticateRequest(), may_repeat=True)
        return bool(enabled)

    def may(self, grant: Grant) -> bool:
        """Whether our own user may do all of ``grant``. Nothing is read out, and nothing written.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        start, end = _range(grant)
        # Etcd looks at what a transaction might do before it compares; this comparison never holds.
        request = rpc.TxnRequest(compare=[never(keys.INCARNATION)])
        if grant.access.has_read:
            read = rpc.RangeRequest(key=start, range_end=end, limit=1, keys_only=True)
            request.success.append(rpc.RequestOp(request_range=read))
        if grant.access.has_write:
            delete = rpc.DeleteRangeRequest(key=start, range_end=end)
            request.success.append(rpc.RequestOp(request_delete_range=delete))
        try:
            self._members.call(lambda member: member.client.kvstub.Txn, request, may_repeat=True)
        except NotPermitted:
            return False
        return True

    # --- inside --------------------------------------------------------------------------------

    def _ask(self, method: str, request: Any) -> Any:
        """Return the answer; None: what it names is not there, or what it makes is there already."""
        try:
            return self._members.call(_auth(method), request, may_repeat=True)
        except InvalidInput as error:
            if isinstance(error.__cause__, grpc.RpcError):
                said = str(error.__cause__.details())
                if _EXISTS in said or any(text in said for text in _IS_MISSING):
                    return None
            raise


_TYPES = {Access.READ: 0, Access.WRITE: 1, Access.BOTH: 2}
"""Of ``authpb.Permission``."""


def _auth(method: str) -> Any:
    return lambda member: getattr(member.auth_stub, method)


def _is_nobody_refused(member: Member) -> Callable[..., bool]:
    """Return a call that asks for a token for nobody: etcd says whether it gives tokens at all."""

    def call(request: Any, *, timeout: float, metadata: Any) -> bool:
        try:
            member.auth_stub.Authenticate(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            said = str(error.details())
            if "authentication is not enabled" in said:
                return False
            if "authentication failed" not in said and "user name is empty" not in said:
                raise
        return True

    return call


def _range(grant: Grant) -> tuple[bytes, bytes]:
    return range_of(grant.key)


def _grant(permission: Any) -> Grant:
    key, range_end = bytes(permission.key), bytes(permission.range_end)
    access = {value: access for access, value in _TYPES.items()}[permission.permType]
    text = key.decode("utf-8", "backslashreplace")
    if range_end == prefix_end(key):
        return Grant(text, access)
    return Grant(f"{text}\x00{range_end.decode('utf-8', 'backslashreplace')}", access)
