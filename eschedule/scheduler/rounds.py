"""How a gang could be placed: placement's answers, round by round, and the packing that each allows.

Reads only. Of one launch; not for use by several threads.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ecompute.cluster.gangs import GangClaim
from ecompute.cluster.placement import CandidatesQuery, candidates_query
from eschedule.scheduler.beside import Beside
from eschedule.scheduler.cache import Offer
from eschedule.scheduler.facts import Facts, Target
from eschedule.scheduler.offers import Offers
from eschedule.scheduler.pack import Member, Packing, Way, pack
from eschedule.scheduler.question import LIMIT
from eschedule.scheduler.rank import Ranked, Reason
from eschedule.scheduler.request import LaunchRequest
from eschedule.scheduler.together import naming

CANDIDATES_A_MEMBER = 4
CANDIDATES_LIMIT = 1000
SILENT_POINTS = -10.0
"""What it costs a host that its daemon does not answer: it comes after all others."""


class Key(NamedTuple):
    """What tells one question to placement, and the answers that serve it, from another."""

    query: str
    host: str | None
    group: str | None
    """It says which hosts may serve the member at all."""


@dataclass
class GangMember:
    request: LaunchRequest
    uuid: str
    expires_at_s: int | None
    beside: Beside

    @property
    def name(self) -> str:
        return self.request.name or self.uuid


@dataclass
class Gang:
    uuid: str
    namespace: str
    members: list[GangMember]
    questions: dict[Key, CandidatesQuery]
    claim: GangClaim | None = None
    was_refused: bool = False
    refusing: set[str] = field(default_factory=set)
    """Providers that have refused in this pass, and the hosts that are ``closed`` because of one beside them."""
    closed: set[str] = field(default_factory=set)
    tries: int = 0
    outrun: int = 0
    """How often others wrote first at every try of a claim."""
    reserved: list[tuple[Offer, int]] = field(default_factory=list)

    @property
    def requests(self) -> list[LaunchRequest]:
        return [member.request for member in self.members]


@dataclass(frozen=True)
class Round:
    """One answer to each question, and the hosts behind them."""

    offers: dict[Key, Offer]
    known: dict[str, Target]
    reasons: dict[tuple[int, Key, int], tuple[Reason, ...]] = field(default_factory=dict)
    """What speaks for a candidate, by what is claimed beside it, the question, and its place in the answer."""


Weigh = Callable[[LaunchRequest, Beside, Offer, Mapping[str, Target]], list[Ranked]]


class Rounds:
    """Args:
    weigh: returns the candidates of an answer that a member may have, with what speaks for each.
    """

    def __init__(self, offers: Offers, facts: Facts, weigh: Weigh, rng: random.Random) -> None:
        self._offers = offers
        self._facts = facts
        self._weigh = weigh
        self._rng = rng

    def all(self, gang: Gang) -> Iterator[Round]:
        """Yield one answer to each question at a time, each asked only if those before did not serve."""
        counts = Counter(key_of(member.request) for member in gang.members)
        besides = {key_of(member.request): member.beside for member in gang.members}
        streams = {
            key: self._stream(question, key.host, besides[key], counts[key]) for key, question in gang.questions.items()
        }
        asks = {key_of(member.request): number for number, member in reversed(list(enumerate(gang.members, 1)))}
        offers: dict[Key, Offer] = {}
        while True:
            newer: dict[Key, Offer] = {}
            for key, stream in streams.items():
                with naming(gang.requests, asks[key]):
                    offer = next(stream, None)
                if offer is not None:
                    newer[key] = offer
            if not newer:
                return
            offers = offers | newer
            known = self._facts.targets({host for offer in offers.values() for host in offer.hosts.values()})
            yield Round(offers, known)

    def _stream(self, question: CandidatesQuery, host: str | None, beside: Beside, members: int) -> Iterator[Offer]:
        only = beside.only
        return self._offers.of(
            question,
            host,
            # Of several hosts each would be an answer of its own, and a gang needs them in one.
            only=only if only is not None and len(only) == 1 else None,
            is_wide=bool(beside.excluded or only),
            limit=min(CANDIDATES_LIMIT, max(LIMIT, CANDIDATES_A_MEMBER * members)),
        )

    def pack(self, gang: Gang, around: Round, some: Sequence[GangMember] | None = None) -> Packing:
        """Pack ``some`` of its members; None: all."""
        seed = self._rng.getrandbits(64)
        room: dict[tuple[str, str], tuple[int, int]] = {}
        for offer in around.offers.values():
            for candidate in offer.answer.items:
                for provider, amounts in candidate.allocations.items():
                    for name in amounts:
                        known = offer.use(provider, name)
                        if known is not None:
                            old = room.get((provider, name), known)
                            room[provider, name] = (min(old[0], known[0]), max(old[1], known[1]))
        kinds: dict[tuple[int, Key], tuple[tuple[Way, ...], dict[str, str]]] = {}
        members = []
        for member in gang.members if some is None else some:
            beside, key = member.beside, key_of(member.request)
            if (id(beside), key) not in kinds:
                kinds[id(beside), key] = self._ways(gang, member, around)
            ways, places = kinds[id(beside), key]
            members.append(
                Member(
                    name=member.uuid,
                    ways=ways,
                    apart=beside.group_uuid if beside.are_members_apart else None,
                    together=beside.group_uuid if beside.are_members_together else None,
                    places=places,
                )
            )
        return pack(members, room, seed=seed, is_packed=any(m.request.is_packed for m in gang.members))

    def _ways(self, gang: Gang, member: GangMember, around: Round) -> tuple[tuple[Way, ...], dict[str, str]]:
        """Return how a member can be served, and the places of those hosts as its group sees them."""
        beside, key = member.beside, key_of(member.request)
        offer = around.offers[key]
        ways, places = [], {}
        for one in self._weigh(member.request, beside, offer, around.known):
            place = beside.place_of(one.provider, around.known[one.provider].zone)
            rows = offer.answer.items[one.index].allocations
            if place is None or one.provider in gang.closed or rows.keys() & gang.refusing:
                continue
            places[one.provider] = place
            around.reasons[id(beside), key, one.index] = one.reasons
            ways.append(
                Way(
                    host=one.provider,
                    rows=rows,
                    # How full it is changes with each member: the packer counts that.
                    points=sum(reason.points for reason in one.reasons[1:]) + (0.0 if one.is_alive else SILENT_POINTS),
                    index=one.index,
                )
            )
        return tuple(ways), places


def key_of(request: LaunchRequest) -> Key:
    """Return what is asked of placement for a member."""
    return Key(candidates_query(request.query).text, request.host, request.group)
