"""A launch that may be repeated: a client's own uuid, or a key that stands for one, makes one instance.

Whoever repeats a launch gets the instance as it is; one that is still under way is waited for. A launch that
lives writes its intent anew every ten seconds or so: with a key, whoever has waited for `WAIT_S` and has not
seen that takes it for dead and takes over, with another uuid. A uuid of the client's own would be spent by
that: it waits for the audit. The same uuid or key with another request is an error, and so is one that was
used up. What is written, and when, is in `ecompute.cluster.chosen`.

Reads only, but for what `take_over` does. Safe from several threads.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.chosen import Chosen
from ecompute.cluster.documents import IdempotencyKey, Instance, Intent, UsedUuid, timestamp
from ecompute.cluster.errors import Conflict
from ecompute.cluster.store import Store, Versioned
from eschedule.scheduler.request import LaunchRequest, digest

WAIT_S = 30.0
"""For how long another launch of the same is waited for while it shows no sign of life."""
LONGEST_WAIT_S = 90.0
"""… and while it does."""
_MAX_PAUSE_S = 0.5


@dataclass(frozen=True)
class Found:
    """It was launched before."""

    instance: Versioned[Instance]


class Once:
    """Args:
    now: seconds since 1970.
    take_over: called with a consumer and the revision of its intent: gives up a launch that is dead.
    clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        rng: random.Random,
        now: Callable[[], float],
        take_over: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._rng = rng
        self._now = now
        self._take_over = take_over
        self._clock = clock

    def look(self, request: LaunchRequest, on_wait: Callable[[str], None] = lambda text: None) -> Found | Chosen | None:
        """Return the instance that was launched so before, or what this launch writes to be the one.

        Args:
            request: checked.

        Returns:
            None: the client chose nothing, and every launch is another one.

        Raises:
            Conflict: the uuid or key was used for something else, is used up, or its launch is under
                way for long.
        """
        if request.uuid is None and request.idempotency_key is None:
            return None
        wanted = digest(request)
        began_s = silent_since_s = self._clock()
        pause_s = 0.05
        sign: tuple[str, int] | None = None
        while True:
            found = self._look(request, wanted)
            if isinstance(found, (Found, Chosen)):
                return found
            now_s = self._clock()
            if found != sign:
                sign, silent_since_s = found, now_s
            is_silent = now_s - silent_since_s >= WAIT_S
            if is_silent and sign is not None and request.idempotency_key is not None:
                on_wait("the same launch has shown no sign of life, and is given up")
                self._take_over(*sign)
                silent_since_s = self._clock()
            elif is_silent or now_s - began_s >= LONGEST_WAIT_S:
                raise Conflict(
                    f"another launch with {_named(request)} has been under way for {now_s - began_s:.0f} s",
                    hint="repeat it in two minutes: it is the instance by then, or was given up",
                )
            on_wait("waiting for the same launch, which is under way")
            time.sleep(self._rng.uniform(pause_s / 2, pause_s))
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)

    def _look(self, request: LaunchRequest, wanted: str) -> Found | Chosen | tuple[str, int] | None:
        """Return what is known now; of a launch that is under way its consumer, and the revision of its intent."""
        uuid, key = request.uuid, None
        if request.idempotency_key is not None:
            key = self._store.get(keys.idempotency(request.namespace, request.idempotency_key), IdempotencyKey)
            if key is None:
                return self._chosen(request, wanted, str(uuid4()), None)
            if key.value.digest != wanted:
                raise _another(request)
            uuid = key.value.uuid
        assert uuid is not None
        used = self._store.get(keys.used_uuid(uuid), UsedUuid)
        if used is None:
            if key is not None:
                return None  # its launch was given up just now: read again
            is_intended = self._store.get(keys.intent(uuid), Intent) is not None
            if is_intended or self._store.get(keys.instance(uuid), Instance) is not None:
                raise Conflict(f"{uuid} is in use", hint="choose another uuid")
            return self._chosen(request, wanted, uuid, None)
        if used.value.digest != wanted or used.value.namespace != request.namespace:
            raise _another(request)
        instance = self._store.get(keys.instance(uuid), Instance)
        if instance is not None:
            return Found(instance)
        if used.value.is_spent and not used.value.is_launched and key is not None:
            # The key names no consumer: with another uuid it may be tried again.
            return self._chosen(request, wanted, str(uuid4()), key)
        if used.value.is_spent:
            what = "was launched, and destroyed" if used.value.is_launched else "was given up before it was launched"
            raise Conflict(
                f"what {_named(request)} stands for {what}", hint="uuids are not used twice: choose another one"
            )
        intent = self._store.get(keys.intent(uuid), Intent)
        return None if intent is None else (uuid, intent.mod_revision)

    def _chosen(
        self, request: LaunchRequest, wanted: str, uuid: str, replaces: Versioned[IdempotencyKey] | None
    ) -> Chosen:
        made_at = timestamp(self._now())
        key = request.idempotency_key
        return Chosen(
            used=UsedUuid(uuid=uuid, namespace=request.namespace, digest=wanted, made_at=made_at),
            key=None if key is None else IdempotencyKey(key=key, uuid=uuid, digest=wanted, made_at=made_at),
            replaces=replaces,
        )


def _named(request: LaunchRequest) -> str:
    return f"uuid {request.uuid}" if request.idempotency_key is None else f"key {request.idempotency_key}"


def _another(request: LaunchRequest) -> Conflict:
    return Conflict(
        f"{_named(request)} was used for another request", hint="choose another one, or repeat the first request"
    )
