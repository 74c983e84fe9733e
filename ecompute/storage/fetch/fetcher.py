"""The real `ImageSource`. Any thread may call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ecompute.cluster.config import ImageSettings
from ecompute.cluster.errors import Cancelled
from ecompute.storage.fetch import local, remote
from ecompute.storage.fetch.api import Fetched, Validator, never
from ecompute.storage.fetch.limits import Limits


class Fetcher:
    def __init__(
        self,
        settings: ImageSettings,
        *,
        refused: Sequence[str] = (),
        limits: Limits | None = None,
        ca: Path | None = None,
    ) -> None:
        """
        Args:
            refused: ``host:port`` of services that are no image servers wherever they are (etcd,
                placement); only ``allow_networks`` overrules it.
            ca: certificate authorities for https instead of the system's.
        """
        self._settings = settings
        self._refused = tuple(refused)
        self._limits = limits or Limits()
        self._ca = ca

    def fetch(
        self,
        url: str,
        into: Path,
        *,
        known: Validator | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Fetched:
        """As `ImageSource.fetch`."""
        if cancelled():
            raise Cancelled("the fetch of an image was given up before it began")
        asked_with = known if known is not None and known.is_usable else None
        path = local.path_of(url)
        if path is not None:
            return local.fetch(
                path,
                into,
                known=asked_with,
                cancelled=cancelled,
                allowed=self._settings.allow_paths,
                max_bytes=self._settings.max_gb << 30,
                limits=self._limits,
            )
        return remote.fetch(
            url,
            into,
            known=asked_with,
            cancelled=cancelled,
            settings=self._settings,
            refused=self._refused,
            limits=self._limits,
            ca=self._ca,
        )
