"""Every error that a person or a program may meet, as one tree.

::

    CloudError
     ├─ InvalidInput            what was asked cannot be meant; exit status 2
     │   ├─ InvalidConfig
     │   ├─ InvalidImage
     │   └─ InvalidMembers      a file of a gang's members
     ├─ NotFound
     ├─ Ambiguous
     ├─ Conflict                somebody else was first
     │   ├─ CompareFailed       a transaction of the store whose comparisons did not hold
     │   ├─ AddressTaken
     │   ├─ MacTaken
     │   ├─ DefaultExists       (`eschedule.cloud.networks`)
     │   ├─ AddressesExhausted  a network has no free address left
     │   ├─ Outrun              placement wrote for others each time that it was tried
     │   ├─ OutOfDate           what was read is too old to release a claim upon
     │   ├─ FloatingAttached    (`eschedule.cloud.floating`)
     │   └─ BesideChanged       (`eschedule.scheduler.beside`)
     ├─ NoRoom                  placement has no allocation for it
     ├─ Refused                 understood, and not allowed
     │   ├─ ClaimRefused        placement refused a claim (see its `scope`)
     │   ├─ ForeignConsumer     a consumer in placement that another tool made
     │   ├─ NotPermitted        etcd does not let this user read or write these keys
     │   ├─ QuotaExceeded       a namespace's limit leaves no room for it
     │   └─ NewerSchema
     ├─ OnHold                  the data in etcd is not the data that was there before
     ├─ Unavailable             a service does not answer; says which, where and since when
     │   ├─ StoreUnavailable
     │   ├─ PlacementUnavailable
     │   ├─ HypervisorUnavailable
     │   └─ StorageUnavailable
     ├─ StepFailed              a step on the host went wrong
     │   ├─ HypervisorError
     │   │   └─ ForeignDomain   (`ecompute.instances.actuate`)
     │   ├─ NetworkError
     │   │   └─ ServiceHung     (`ecompute.network.metadata`)
     │   ├─ StorageError
     │   ├─ Lost                what was once built here is gone
     │   └─ PortTaken           (`ecompute.dev.placement`)
     ├─ Cancelled               the work is not wanted any more
     ├─ DeadlineExceeded
     │   └─ HostSilent          (`eschedule.cloud.instances`)
     ├─ Unreadable              a key holds another document than it should (`ecompute.cluster.documents`)
     ├─ NotLeading              the term ended meanwhile (`ecompute.cluster.upkeep.duties`)
     └─ OutputFailed            standard output cannot be written (`ecompute.cluster.terminal`)

The text of an error is one line that says what was tried, on what, what was found; `hint` says what
to do about it. `code` is stable and public: programs compare it, people read the text. An error is
logged once, where it is handled; on the way there it is chained with ``from``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


def one_line(text: object, limit: int = 500) -> str:
    """Return ``text`` on one line, without control characters, at most ``limit`` characters long.

    What comes from outside (a server's answer, a user's file name) passes through here before it
    reaches a terminal or a log.
    """
    said = str(text)
    if not said.isprintable():
        said = "".join(c if c.isprintable() else " " for c in said)
    flat = " ".join(said.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def some_of(texts: Sequence[str], limit: int = 5) -> str:
    """Return the first of ``texts`` in one line, and how many more there are."""
    shown = ", ".join(texts[:limit])
    return shown if len(texts) <= limit else f"{shown} and {len(texts) - limit} more"


class CloudError(Exception):
    """Anything that this project raises on purpose."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(one_line(message))
        self.hint = one_line(hint)

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message}; {self.hint}" if self.hint else message


class InvalidInput(CloudError):
    code = "input.invalid"
    exit_status = 2


class InvalidConfig(InvalidInput):
    """``problems`` has one line for every mistake of the file, each with its line number."""

    code = "config.invalid"

    def __init__(self, path: str, problems: list[str]) -> None:
        super().__init__(f"{path}: " + "; ".join(problems))
        self.path = path
        self.problems = problems


class InvalidImage(InvalidInput):
    code = "image.invalid"


class NotFound(CloudError):
    code = "not_found"


class Ambiguous(CloudError):
    code = "ambiguous"


class Conflict(CloudError):
    code = "conflict"


class CompareFailed(Conflict):
    """Nothing was written: a key is not as the writer had read it. Read again and decide again.

    ``keys`` are those (or the prefixes) whose comparisons did not hold.
    """

    code = "store.compare_failed"

    def __init__(self, message: str, *, keys: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.keys = keys


class Outrun(Conflict):
    """Placement took another's write first at every try. It may be tried again, or elsewhere."""

    code = "placement.outrun"


class OutOfDate(Conflict):
    """Too long has passed since etcd was asked: it may have been put back meanwhile. Read again."""

    code = "store.out_of_date"


class AddressTaken(Conflict):
    code = "network.address.taken"


class MacTaken(Conflict):
    code = "network.mac.taken"


class AddressesExhausted(Conflict):
    code = "network.address.exhausted"


class NoRoom(CloudError):
    code = "placement.no_room"


class Refused(CloudError):
    code = "refused"


class ClaimRefused(Refused):
    """Placement understood the claim and said no.

    ``scope`` is ``"host"`` (another host may take it) or ``"quota"`` (no host will); ``providers``
    are those that have no room for it, where that is known.
    """

    code = "placement.claim_refused"

    def __init__(
        self, message: str, *, scope: str = "host", providers: frozenset[str] = frozenset(), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.scope = scope
        self.providers = providers


class ForeignConsumer(Refused):
    """What a consumer holds was claimed by another tool: it is neither taken, changed nor released."""

    code = "placement.foreign_consumer"


class NotPermitted(Refused):
    """Etcd does not let this user do it. ``keys`` are those (or the beginnings) that it may not touch."""

    code = "store.not_permitted"

    def __init__(self, message: str, *, keys: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.keys = keys


class QuotaExceeded(Refused):
    code = "quota.exceeded"


class NewerSchema(Refused):
    code = "schema.newer"


class OnHold(CloudError):
    code = "cluster.on_hold"


class Unavailable(CloudError):
    code = "unavailable"


class StoreUnavailable(Unavailable):
    """``may_be_written``: the answer to a transaction was lost; it may have been written, or not."""

    code = "store.unavailable"

    def __init__(self, message: str, *, hint: str = "", may_be_written: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.may_be_written = may_be_written


class PlacementUnavailable(Unavailable):
    code = "placement.unavailable"


class HypervisorUnavailable(Unavailable):
    code = "hypervisor.unavailable"


class StorageUnavailable(Unavailable):
    """Nothing can be said of what lies on a disk: it is not mounted."""

    code = "storage.unavailable"


class StepFailed(CloudError):
    code = "host.step_failed"


class HypervisorError(StepFailed):
    code = "hypervisor.failed"


class NetworkError(StepFailed):
    code = "network.failed"


class StorageError(StepFailed):
    code = "storage.failed"


class Lost(StepFailed):
    code = "instance.lost"


class Cancelled(CloudError):
    code = "cancelled"


class DeadlineExceeded(CloudError):
    code = "deadline_exceeded"
