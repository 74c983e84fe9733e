"""What a watch knows of one prefix: the documents under it, kept by a list and the events after it.

Pure: events and lists go in, changes come out, which the watcher then tells the listener. A key that
was deleted and made again shows as two changes, also where both happened unseen between two lists:
its create revision tells. A document that cannot be read leaves the last readable one in its place
(a typing error in one key must not look like a deletion), and still wakes the listener.

Not for use by several threads at once: `ecompute.cluster.store.watch` holds a lock around each call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ecompute.cluster.store.transactions import Listing, Versioned

T = TypeVar("T")


@dataclass(frozen=True)
class Change(Generic[T]):
    """A key is no longer what it was.

    ``before`` None: it is new; ``after`` None: it is gone. With ``key == ""`` and ``is_relist`` the
    whole prefix was listed anew (at the start, and after every gap): go through everything. The
    differences that the list showed come before that, each as a change of its own.
    """

    key: str
    before: Versioned[T] | None
    after: Versioned[T] | None
    is_relist: bool = False


class Cache(Generic[T]):
    """The documents under one prefix."""

    def __init__(self) -> None:
        self.items: dict[str, Versioned[T]] = {}
        self.unreadable: dict[str, str] = {}
        self.revision = 0
        """Everything up to it has been taken in."""

    def relist(self, listing: Listing[T]) -> list[Change[T]]:
        """Take in what a list shows; return what has changed since, and the mark of a list."""
        before, after = self.items, {item.key: item for item in listing.items}
        unreadable = dict(listing.unreadable)
        changes: list[Change[T]] = []
        for key, old in before.items():
            if key in after:
                continue
            if key in unreadable:
                after[key] = old
            else:
                changes.append(Change(key, old, None))
        for key, new in after.items():
            known = before.get(key)
            if known is not None and known.create_revision != new.create_revision:
                changes.append(Change(key, known, None))
                known = None
            if known is None or known != new:
                changes.append(Change(key, known, new))
        changes += [Change(key, before.get(key), before.get(key)) for key in unreadable if key not in self.unreadable]
        self.items, self.unreadable, self.revision = after, unreadable, listing.revision
        changes.append(Change("", None, None, is_relist=True))
        return changes

    def put(self, item: Versioned[T]) -> Change[T]:
        before = self.items.get(item.key)
        self.unreadable.pop(item.key, None)
        self.items[item.key] = item
        return Change(item.key, before, item)

    def put_unreadable(self, key: str, reason: str) -> Change[T]:
        self.unreadable[key] = reason
        known = self.items.get(key)
        return Change(key, known, known)

    def delete(self, key: str) -> Change[T]:
        self.unreadable.pop(key, None)
        return Change(key, self.items.pop(key, None), None)
