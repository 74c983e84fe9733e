"""The two services behind every question, connected to when first asked."""

from __future__ import annotations

import os
import socket
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ecompute.cluster import config

if TYPE_CHECKING:
    from ecompute.cluster.claims import Claims
    from ecompute.cluster.events import Events
    from ecompute.cluster.placement import Placement
    from ecompute.cluster.store import Store

STORE_TIMEOUT_S = 5.0


class Cloud:
    """etcd and placement as the configuration names them.

    What a question does not need is neither connected to nor loaded: reading etcd alone costs half
    the start-up of asking both.

    Safe from several threads after the first use of each attribute.

    Args:
        store_timeout_s: how long one call to etcd may take.
    """

    def __init__(self, settings: config.Config, *, store_timeout_s: float = STORE_TIMEOUT_S) -> None:
        self.settings = settings
        self._store_timeout_s = store_timeout_s

    @classmethod
    def from_file(cls, path: Path | None, *, store_timeout_s: float = STORE_TIMEOUT_S) -> Self:
        """Read the configuration that `config.find` finds; none at all means localhost.

        Raises:
            InvalidConfig: with all its problems.
        """
        return cls(config.load(config.find(path)), store_timeout_s=store_timeout_s)

    @cached_property
    def store(self) -> Store:
        from ecompute.cluster.store import Store

        return Store(self.settings.etcd, timeout_s=self._store_timeout_s)

    @cached_property
    def placement(self) -> Placement:
        from ecompute.cluster.placement import Placement

        return Placement(self.settings.placement)

    @cached_property
    def events(self) -> Events:
        from ecompute.cluster.events import TOOL, Events

        return Events(self.store, TOOL)

    @cached_property
    def claims(self) -> Claims:
        from ecompute.cluster.claims import Claims

        return Claims(self.store, self.placement, writer=who())

    def close(self) -> None:
        """Close what was connected to. A later use connects again."""
        for service in ("claims", "events"):
            self.__dict__.pop(service, None)
        for service in ("store", "placement"):
            if service in self.__dict__:
                self.__dict__.pop(service).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def who() -> str:
    """Return ``user@host``, for records that people read."""
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
