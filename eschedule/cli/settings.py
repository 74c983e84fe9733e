"""What the options before the command say, and the way to the cloud that they name.

Loads nothing heavy until `Settings.cloud` is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

NAMESPACE = "system"
"""The namespace that is meant where none is named; the same as `documents.DEFAULT_NAMESPACE`."""


@dataclass(frozen=True)
class Settings:
    config: Path | None = None
    namespace: str = NAMESPACE

    @contextmanager
    def cloud(self, *, store_timeout_s: float | None = None) -> Iterator[Cloud]:
        """Give the cloud of the configuration, and close it at the end.

        Args:
            store_timeout_s: how long one call to etcd may take, where that is not the usual.

        Raises:
            InvalidConfig: with all its problems.
            InvalidInput: the namespace cannot be one.
        """
        _be_quiet()
        from eschedule.cloud.connection import STORE_TIMEOUT_S, Cloud
        from eschedule.scheduler.request import check_namespace

        check_namespace(self.namespace)
        cloud = Cloud.from_file(self.config, store_timeout_s=store_timeout_s or STORE_TIMEOUT_S)
        try:
            yield cloud
        finally:
            cloud.close()


def _be_quiet() -> None:
    """Keep the log of libraries off the terminal: what goes wrong there reaches us as an error."""
    import logging
    import os

    from ecompute.cluster.terminal import DEBUG

    if os.environ.get(DEBUG):
        from ecompute.cluster import log

        log.configure("debug")
        return
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read once, when gRPC is loaded
    logging.getLogger().addHandler(logging.NullHandler())
