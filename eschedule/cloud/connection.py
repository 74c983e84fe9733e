"""The two services behind every question, connected to when first asked."""

from __future__ import annotations

import os
import pwd
import socket
from functools import cached_property
from pathlib import Path

from ecompute.cluster import config
from ecompute.cluster.claims import Claims
from ecompute.cluster.events import TOOL, Events
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store


class Cloud:
    """etcd and placement as the configuration names them.

    Safe from several threads after the first use of each attribute.
    """

    def __init__(self, settings: config.Config) -> None:
        self.settings = settings

    @classmethod
    def from_file(cls, path: Path | None) -> Cloud:
        """Read the configuration that `config.find` finds; none at all means localhost."""
        return cls(config.load(config.find(path)))

    @cached_property
    def store(self) -> Store:
        return Store(self.settings.etcd)

    @cached_property
    def placement(self) -> Placement:
        return Placement(self.settings.placement)

    @cached_property
    def events(self) -> Events:
        return Events(self.store, TOOL)

    @cached_property
    def claims(self) -> Claims:
        return Claims(self.store, self.placement, writer=who())

    def close(self) -> None:
        if "store" in self.__dict__:
            self.store.close()


def who() -> str:
    """Return ``user@host``, for records that people read."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
