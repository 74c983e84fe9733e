"""The directory under which instances have their files, and proof that it is that one.

A file system that is not mounted looks like a directory in which nothing lies; every guest of the
host would be reported gone, and its claim released. So the directory bears a mark, made while it is
new, and no look at it is believed without the mark.

Safe from several threads.
"""

from __future__ import annotations

import os
from pathlib import Path

from ecompute.cluster.errors import StorageError, StorageUnavailable

MARK = ".instances-of"


class Place:
    """The directory ``path`` of the host ``provider``.

    Args:
        is_new: whether this host has never had an instance; only then is a directory without a mark
            taken for its own.

    Raises:
        StorageError: it cannot be made, or is another host's.
    """

    def __init__(self, path: Path, provider: str, *, is_new: bool) -> None:
        self.path = path
        self._mark = path / MARK
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o711)
            if is_new and not self._mark.exists():
                self._make(provider)
            owner = self._mark.read_text(encoding="utf-8").strip() if self._mark.exists() else provider
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{path} cannot be used: {error}", hint="see to its rights and its disk") from error
        if owner != provider:
            raise StorageError(
                f"{path} has the instances of host {owner[:40]!r}, and this is {provider}",
                hint=f"to be that host again, set `uuid: {owner[:40]}` in compute.yaml; else give it its own state_dir",
            )

    def check(self) -> None:
        """See that the directory is the one that was marked.

        Raises:
            StorageUnavailable: nothing can be said of what lies in it.
        """
        if not self._mark.exists():
            raise StorageUnavailable(
                f"{self.path} has no {MARK}: is its file system not mounted?",
                hint=f"mount it; only if every disk in it is lost for good, put this host's uuid into {self._mark}",
            )

    def _make(self, provider: str) -> None:
        with self._mark.open("w", encoding="utf-8") as file:
            file.write(provider + "\n")
            file.flush()
            os.fsync(file.fileno())
