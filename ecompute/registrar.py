"""The host's place in placement: its resource provider, what that has, and what it can do.

The provider's uuid is the host's identity: its guests' allocations, its keys in etcd and the
domains' metadata name it. It is made once and kept on the host's own disk (or set by the operator),
so that a restart is the same host.

What is not the daemon's stays as it is: aggregates, resource classes other than the three that it
measures, and traits other than those that tell of processor and accelerator. Operators and the
cluster's upkeep set those. Nothing is written that is already so.

Threads: any; a `Registrar` serves one call at a time.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid as uuids
from collections.abc import Set as AbstractSet
from pathlib import Path

from ecompute.cluster.closing import CLASSES
from ecompute.cluster.config import Config
from ecompute.cluster.errors import Conflict, StorageError
from ecompute.cluster.placement import Placement
from ecompute.inventory import Measured, inventory, measure, shortfalls

IDENTITY_FILE = "provider-uuid"
OUR_TRAITS = ("HW_CPU_X86_", "CUSTOM_VIRT_")

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


def merge_traits(found: AbstractSet[str], given: AbstractSet[str], known: AbstractSet[str]) -> frozenset[str]:
    """Return all traits that the provider is to have. Pure.

    Args:
        found: what it has.
        given: what the daemon says of it.
        known: the standard traits of this placement. An older one lacks some, and would refuse all
            of a set that names one of them.
    """
    others = {trait for trait in found if not trait.startswith(OUR_TRAITS)}
    return frozenset(others | {trait for trait in given if trait.startswith("CUSTOM_") or trait in known})


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

    def register(self, measured: Measured, traits: AbstractSet[str], *, is_closed: bool = False) -> bool:
        """Make provider, inventory and traits what they should be; return whether anything was written.

        Args:
            measured: what the machine has.
            traits: of processor and accelerator; those that placement does not know are left out.
            is_closed: nothing new is to be sent here.

        Raises:
            Conflict: another provider has this name: an orphan of an earlier life of this host.
        """
        with self._lock:
            self._tell(shortfalls(measured, self._config.inventory))
            self._ensure_provider()
            # Traits first: a new host is asked for by them as soon as it has something to give.
            has_written = self._set_traits(traits)
            return self._set_inventory(measured, is_closed=is_closed) or has_written

    def close(self, measured: Measured | None = None) -> bool:
        """Reserve all VCPU, so that nothing new is sent here; return whether anything was written.

        Nothing happens if the host was never registered.
        """
        with self._lock:
            if self._placement.provider(self._provider) is None:
                return False
            return self._set_inventory(self._measured(measured), is_closed=True)

    def open(self, measured: Measured | None = None) -> bool:
        """Take back what `close` did; return whether anything was written.

        Raises:
            NotFound: the host was never registered.
        """
        with self._lock:
            return self._set_inventory(self._measured(measured), is_closed=False)

    def _measured(self, measured: Measured | None) -> Measured:
        return measure(self._config.state_dir) if measured is None else measured

    def _ensure_provider(self) -> None:
        """See that there is our provider.

        Placement's names are unique; who has ours, and is not us, is what this host was before its
        state directory was lost, or another host of that name.
        """
        found = self._placement.provider(self._provider)
        if found is not None and found.name == self._name:
            return
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
        self._placement.ensure_provider(self._provider, self._name)
        if found is None:
            log.info("registered provider %s, named %s", self._provider, self._name)
        else:
            log.info("provider %s, named %s until now, is named %s", self._provider, found.name, self._name)

    def _set_traits(self, given: AbstractSet[str]) -> bool:
        if self._known_traits is None:
            self._known_traits = self._placement.known_traits()
        found = self._placement.traits(self._provider)
        return self._placement.set_traits(self._provider, merge_traits(found, given, self._known_traits))

    def _set_inventory(self, measured: Measured, *, is_closed: bool) -> bool:
        found = self._placement.inventories(self._provider).inventories
        others = {name: item for name, item in found.items() if name not in CLASSES}
        ours = inventory(measured, self._config.inventory, is_closed=is_closed)
        return self._placement.set_inventories(self._provider, others | ours)

    def _tell(self, texts: list[str]) -> None:
        """Log what the configuration asks in vain, once as long as it stays so."""
        if texts != self._told:
            for text in texts:
                log.warning("%s", text)
            self._told = texts
