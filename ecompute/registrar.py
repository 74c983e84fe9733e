"""The host's place in placement: its resource provider, what that has, can do and belongs to.

The provider's uuid is the host's identity: its guests' allocations, its keys in etcd and the
domains' metadata name it. It is made once and kept on the host's own disk (or set by the operator),
so that a restart is the same host.

Of the provider, the daemon's are: the three classes that it measures, and the one that says that it
is a host; traits of processor and accelerator, those that operators give it through ``/admin``, and
`closing.DISABLED`; its shards' aggregates and its zone's. All else stays as it is: classes, ``CUSTOM_``
traits and aggregates that others set.

Nothing is written that is already so, and nothing read of a provider that nobody has written since
it was seen to be right: placement counts a generation.

Threads: any; a `Registrar` serves one call at a time.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid as uuids
from collections.abc import Set as AbstractSet
from pathlib import Path

from ecompute.cluster.closing import CLASSES, closed
from ecompute.cluster.config import Config
from ecompute.cluster.errors import Conflict, NotFound, StorageError
from ecompute.cluster.given import Said, merge_aggregates, merge_traits
from ecompute.cluster.placement import PRESENCE, Inventory, Placement
from ecompute.cluster.shards import aggregates_of
from ecompute.inventory import Measured, inventory, shortfalls
from ecompute.standing import Door

IDENTITY_FILE = "provider-uuid"

log = logging.getLogger(__name__)


def identity(config: Config, state_dir: Path) -> str:
    """Return the uuid of this host's resource provider, made up and kept the first time.

    The file is complete or absent whatever happens, and of two processes that make it at once, one
    wins and both return the same.

    Raises:
        StorageError: the file cannot be read or written, or holds something else.
    """
    if config.uuid is not None:
        return config.uuid
    path = state_dir / IDENTITY_FILE
    try:
        if not path.exists():
            _write_once(path, f"{uuids.uuid4()}\n")
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise StorageError(f"the host's uuid cannot be kept in {path}: {error.strerror}") from error
    try:
        found = uuids.UUID(text)
    except ValueError as error:
        raise StorageError(
            f"{path} does not hold a uuid",
            hint="put the host's back there (its provider's in placement), or set `uuid` in compute.yaml",
        ) from error
    return str(found)


def _write_once(path: Path, text: str) -> None:
    """Make ``path``, unless somebody else just did; it survives a power cut from then on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    new = path.with_name(f"{path.name}.{uuids.uuid4().hex}.new")
    try:
        with new.open("x", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, not a rename, which would replace what the other process has already read.
            path.hardlink_to(new)
        except FileExistsError:
            return
    finally:
        new.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Registrar:
    """Keeps one host's provider as it should be.

    Args:
        placement: the client.
        config: the share of the machine, what is reserved, the ratios.
        provider: the provider's uuid, from `identity`.
        name: the provider's name.

    Every method may raise `PlacementUnavailable`, and `Refused` or `Conflict` where placement does
    not take what is written.
    """

    def __init__(self, placement: Placement, config: Config, provider: str, name: str) -> None:
        self._placement = placement
        self._config = config
        self._provider = provider
        self._name = name
        self._lock = threading.Lock()
        self._known_traits: frozenset[str] | None = None
        self._told: list[str] = []
        self._right: tuple[int, object] | None = None
        """The provider's generation when all that was wanted was seen to be so, and what that was."""

    def exists(self) -> bool:
        """Whether placement knows the host."""
        return self._placement.provider(self._provider) is not None

    def claimants(self) -> frozenset[str]:
        """Return the consumers that hold something of the host; none if placement does not know it."""
        try:
            return frozenset(self._placement.provider_allocations(self._provider))
        except NotFound:
            return frozenset()

    def offered(self, measured: Measured) -> dict[str, Inventory]:
        """Return what the host offers when it is open, by resource class. No I/O."""
        return inventory(measured, self._config.inventory)

    def register(
        self,
        measured: Measured,
        traits: AbstractSet[str],
        *,
        door: Door = Door.OPEN,
        said: Said | None = None,
    ) -> bool:
        """Make provider, traits, aggregates and inventory what they should be; return whether anything was written.

        Args:
            measured: what the machine has.
            traits: of processor and accelerator; those that placement does not know are left out.
            door: whether something new may be sent here.
            said: by operators; None: that is not known now, and what they said before stays.

        Raises:
            Conflict: another provider has this name: an orphan of an earlier life of this host.
        """
        with self._lock:
            self._tell(shortfalls(measured, self._config.inventory))
            wanted = (measured, frozenset(traits), door, said)
            generation = self._ensure_provider()
            if self._right == (generation, wanted):
                return False
            self._right = None
            # Before the inventory: a new host is asked for by them as soon as it has something to give.
            has_written = self._set_traits(traits, said, is_hidden=door is not Door.OPEN)
            has_written |= self._set_aggregates(said)
            has_written |= self._set_inventory(measured, is_closed=door is Door.CLOSED)
            if not has_written:
                self._right = generation, wanted
            return has_written

    def close(self) -> bool:
        """Keep everything new off the host; return whether anything was written.

        Nothing happens if the host was never registered.
        """
        with self._lock:
            self._right = None
            try:
                return self._placement.close_host(self._provider)
            except NotFound:
                return False

    def _ensure_provider(self) -> int:
        """See that there is our provider, and return its generation.

        Placement's names are unique; who has ours, and is not us, is what this host was before its
        state directory was lost, or another host of that name.
        """
        found = self._placement.provider(self._provider)
        if found is not None and found.name == self._name:
            return found.generation
        other = self._placement.provider_by_name(self._name)
        if other is not None and other.uuid != self._provider:
            raise Conflict(
                f"placement has a provider named {self._name} with uuid {other.uuid}, and this host is "
                f"{self._provider}: an orphan of an earlier life of this host, or another host of the same name",
                hint=(
                    f"to be that host again, set `uuid: {other.uuid}` in compute.yaml; if it is gone for good, free "
                    f"its instances and delete {self._placement.endpoint}/resource_providers/{other.uuid}; if it is "
                    "another host, set another `name`"
                ),
            )
        made = self._placement.ensure_provider(self._provider, self._name)
        if found is None:
            log.info("registered provider %s, named %s", self._provider, self._name)
        else:
            log.info("provider %s, named %s until now, is named %s", self._provider, found.name, self._name)
        return made.generation

    def _set_traits(self, measured: AbstractSet[str], said: Said | None, *, is_hidden: bool) -> bool:
        if self._known_traits is None:
            self._known_traits = self._placement.known_traits()
        known, said = self._known_traits, said or Said()
        return self._placement.change_traits(
            self._provider, lambda found: merge_traits(found, measured, known, said=said, is_hidden=is_hidden)
        )

    def _set_aggregates(self, said: Said | None) -> bool:
        ours = aggregates_of(self._provider)
        return self._placement.change_aggregates(
            self._provider,
            lambda found: found | ours if said is None else merge_aggregates(found, self._provider, said),
        )

    def _set_inventory(self, measured: Measured, *, is_closed: bool) -> bool:
        ours = self.offered(measured)
        ours = (closed(ours) if is_closed else ours) | {PRESENCE: Inventory(total=1, max_unit=1)}
        return self._placement.change_inventories(
            self._provider,
            lambda found: {name: item for name, item in found.items() if name not in CLASSES} | ours,
        )

    def _tell(self, texts: list[str]) -> None:
        """Log what the configuration asks in vain, once as long as it stays so."""
        if texts != self._told:
            for text in texts:
                log.warning("%s", text)
            self._told = texts
