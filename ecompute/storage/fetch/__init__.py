"""Getting an image's bytes onto this host's disk: over HTTP, or from an allowed local directory.

`Fetcher` is the real one, `ImageSource` what it promises. What it brings is content and its hash,
nothing more: whether that is an image is for `ecompute.storage.inspect` to say.
"""

from ecompute.storage.fetch.api import Fetched, ImageSource, Validator, shown
from ecompute.storage.fetch.fetcher import Fetcher
from ecompute.storage.fetch.limits import Limits

__all__ = ["Fetcher", "ImageSource", "Fetched", "Validator", "Limits", "shown"]
