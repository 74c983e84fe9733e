"""What fetching an image means, whoever does it. Imports no HTTP library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from ecompute.cluster.errors import one_line

MAX_VALIDATOR_CHARACTERS = 1024


@dataclass(frozen=True)
class Validator:
    """How the source names the version of its content; asked with, it answers "not modified"."""

    etag: str | None = None
    last_modified: str | None = None

    @property
    def is_usable(self) -> bool:
        return self.etag is not None or self.last_modified is not None


@dataclass(frozen=True)
class Fetched:
    """What a fetch brought.

    Attributes:
        path: an unfinished file (see `ecompute.storage.partial`) which the caller publishes or
            discards; None when the content is not modified.
        sha256: of the content, in hexadecimal; empty when it is not modified.
        validator: what to ask with next time.
        not_modified: the content is that of the validator asked with.
    """

    path: Path | None
    sha256: str
    size_bytes: int
    validator: Validator
    not_modified: bool = False


def never() -> bool:
    return False


class ImageSource(Protocol):
    """Any thread may fetch; several may fetch at once."""

    def fetch(
        self,
        url: str,
        into: Path,
        *,
        known: Validator | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Fetched:
        """Bring the content of ``url`` into a new file in the directory ``into``.

        Args:
            known: what an earlier fetch of this URL returned, if its content is still here.
            cancelled: asked often, from any thread; True ends the fetch.

        Raises:
            InvalidImage: the source answered, and not with an image: 404, an HTML page, too large.
            Refused: the operator does not allow this address or path.
            Unavailable: the source does not answer, or broke off; it may do better later.
            StorageError: this host's disk did not take it.
            Cancelled: ``cancelled`` said so.

        After any error nothing is left in ``into``.
        """
        ...


def shown(url: str) -> str:
    """Return ``url`` as it may be logged: without user, password, query and fragment.

    The query of a signed URL is a secret.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return one_line(url.split("?", 1)[0].rpartition("@")[2], 200)
    if not parts.scheme:
        return one_line(url, 200)
    host = parts.netloc.rpartition("@")[2]
    return one_line(f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else ""), 200)
