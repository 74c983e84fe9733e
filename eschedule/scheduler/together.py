"""The requests of one gang: what they have in common, and what each is called where something is wrong with it.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ecompute.cluster.errors import CloudError, InvalidInput, NotFound
from ecompute.cluster.gangs import MEMBERS_LIMIT
from eschedule.cloud.interface_request import no_two_alike
from eschedule.scheduler.request import LaunchRequest, check


def checked_requests(requests: Sequence[LaunchRequest]) -> list[LaunchRequest]:
    """Return ``requests`` with their texts trimmed.

    Raises:
        InvalidInput: one of them cannot be meant (it says which), or they cannot be launched together.
    """
    if not 0 < len(requests) <= MEMBERS_LIMIT:
        raise InvalidInput(f"a gang of {len(requests)} cannot be launched", hint=f"1 to {MEMBERS_LIMIT} are possible")
    checked = []
    for number, request in enumerate(requests, 1):
        name = called(request, number)
        if request.uuid is not None or request.idempotency_key is not None:
            raise InvalidInput(f"{name}: a member of a gang has no uuid or key of its own", hint="leave it out")
        try:
            checked.append(check(request))
        except InvalidInput as error:
            raise InvalidInput(f"{name}: {error.args[0]}", hint=error.hint) from error
    names = Counter(request.name for request in checked if request.name is not None)
    for name, count in names.items():
        if count > 1:
            raise InvalidInput(f"{count} members of the gang are called {name}", hint="give each a name of its own")
    no_two_alike(interface for request in checked for interface in request.interfaces)
    if len({request.namespace for request in checked}) > 1:
        raise InvalidInput(
            "the members of a gang are of several namespaces", hint="launch them one namespace at a time"
        )
    return checked


def called(request: LaunchRequest, number: int) -> str:
    """Return what a member is called in an error; ``number`` counts from 1."""
    return request.name or f"member {number}"


def named(error: CloudError, requests: Sequence[LaunchRequest], number: int) -> CloudError:
    """Return ``error``, which is about one member, with its name where the others are not all like it."""
    if len({replace(request, name=None) for request in requests}) == 1:
        return error
    return type(error)(f"{called(requests[number - 1], number)}: {error.args[0]}", hint=error.hint)


@contextmanager
def naming(requests: Sequence[LaunchRequest], number: int) -> Iterator[None]:
    """Have what is wrong with one member say which it is."""
    try:
        yield
    except (InvalidInput, NotFound) as error:
        raise named(error, requests, number) from error
