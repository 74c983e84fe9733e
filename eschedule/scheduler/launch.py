"""Launch one instance: candidates, then ``intent → claim → request``.

Capacity is decided by placement in the claim; everything else by etcd in the request. What the
request compares: the intent and the incarnation (`ecompute.cluster.claims`), the host's node and its
``/admin`` key as they were read (one that is drained or closes takes nothing, whatever an answer says),
the quota and the group, the network and the address. A comparison that fails is read again; a host
that says no is passed over. See `ecompute.cluster.claims` for what a death at any point leaves.

A launcher lives long: placement's answers (`cache`), what etcd says of hosts (`facts`) and the network
are kept for a few seconds, so that a launch costs the intent's transaction, the claim and the request's
transaction, and little else. What is kept may be old: the claim and the request's comparisons decide.

A claim ends in one of four ways: *taken*; *stop* (a quota refused); *next* (the host refused, and is
left out of the answer); *again* (overtaken, no answer, the host's facts have changed): with a pause at
random, a bounded number of times. One that is overtaken each time is tried on the next host: after
`OUTRUN_HOSTS` of them it is a row that all share, a quota's, which is contended.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.chosen import Chosen
from ecompute.cluster.claims import Claim
from ecompute.cluster.documents import Alive, Incarnation, Instance, Member, Node
from ecompute.cluster.errors import (
    ClaimRefused,
    CloudError,
    CompareFailed,
    Conflict,
    NoRoom,
    Outrun,
    StoreUnavailable,
    Unavailable,
)
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.expiring import moment
from ecompute.cluster.placement import candidates_query
from ecompute.cluster.store import Versioned
from eschedule.cloud.connection import Cloud
from eschedule.cloud.ports import Lost
from eschedule.scheduler.beside import Beside, BesideChanged, Rows
from eschedule.scheduler.cache import Offer, OfferCache
from eschedule.scheduler.candidates import ranked
from eschedule.scheduler.facts import Facts, Target
from eschedule.scheduler.launched import Choice, Launched, launched_of
from eschedule.scheduler.offers import Offers
from eschedule.scheduler.once import Found, Once
from eschedule.scheduler.order import claim_of, order_of
from eschedule.scheduler.question import for_launch
from eschedule.scheduler.rank import Ranked, Reason, Wishes
from eschedule.scheduler.request import LaunchRequest, check
from eschedule.scheduler.takeover import take_over
from eschedule.scheduler.whynot import Stage, WhyNot, put_back, too_long
from eschedule.scheduler.wiring import Wiring

T = TypeVar("T")

REQUEST_TRIES = 20
BESIDE_TRIES = 5
"""How often one host is claimed anew because a quota or group changed in between."""
INTENT_TRIES = 8
OUTRUN_HOSTS = 3
"""On how many hosts a claim is overtaken at every try before the launch is given up."""
_MAX_PAUSE_S = 0.25


class _Begun(Exception):
    """Somebody else has begun a launch with the same uuid or key."""


@dataclass
class _Launch:
    """One launch on its way."""

    request: LaunchRequest
    uuid: str
    chosen: Chosen | None
    expires_at_s: int | None
    beside: Beside
    claim: Claim | None = None
    found: Stage = Stage.NO_CANDIDATES
    lost: Lost = field(default_factory=Lost)
    outrun: list[Outrun] = field(default_factory=list)
    """What was said of the hosts that others claimed first at every try."""


class Launcher:
    """Launches instances, one call each. Safe from several threads.

    Args:
        on_refused: told of every claim that was lost, with its reason.
        on_step: told of every step, for a progress line.
        now: seconds since 1970.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        on_refused: Callable[[str], None] = lambda reason: None,
        on_step: Callable[[str], None] = lambda step: None,
        rng: random.Random | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cloud = cloud
        self._store = cloud.store
        self._rng = rng or random.Random()  # noqa: S311 - spreads choices, guards nothing
        self._wiring = Wiring(cloud, rng=self._rng, now=now)
        self._facts = Facts(cloud.store)
        self._offers = Offers(cloud.store, cloud.placement, self._facts, OfferCache(), rng=self._rng)
        self._why_not = WhyNot(cloud, self._facts)
        self._once = Once(cloud.store, rng=self._rng, now=now, take_over=partial(take_over, cloud))
        self._on_refused = on_refused
        self._on_step = on_step
        self._now = now

    def launch(self, request: LaunchRequest) -> Launched:
        """Claim room for one instance and tell its host.

        Raises:
            InvalidInput: the request cannot be meant. Nothing was claimed.
            NotFound: the one host that it may be on is not there.
            NoRoom: no host takes it. Nothing stays claimed.
            ClaimRefused: a quota is used up. Nothing stays claimed.
            OnHold: etcd holds no cloud, or has lost it.
            Conflict: see its text. Nothing stays claimed.
            Unavailable: what was claimed is found by the audit after its grace period, unless the
                instance is there by then.
        """
        request = check(request)
        expires_at_s = None if request.expires is None else moment(request.expires, self._now())
        for _ in range(INTENT_TRIES):
            chosen = self._once.look(request, self._on_step)
            if isinstance(chosen, Found):
                return self._found_again(chosen.instance.value)
            uuid = str(uuid4()) if chosen is None else chosen.used.uuid
            wired = self._wiring.wired(request)
            launch = _Launch(wired, uuid, chosen, expires_at_s, self._beside(wired, is_fresh=False))
            try:
                return self._launch(launch)
            except _Begun:
                continue
            except Unavailable as error:
                # It is not known what was written, and giving up would wait for the same service:
                # what is an instance by now goes on, and the audit finds the rest.
                if launch.claim is not None:
                    error.hint = f"{error.hint}; then see `eschedule doctor {uuid}` for what became of it"
                raise
            except BaseException:
                try:
                    if launch.claim is not None:
                        launch.claim.give_up()
                except Unavailable:
                    self._on_step(f"left {uuid} to the audit")
                raise
        raise Conflict("others launch the same and give it up, over and over", hint="repeat it later")

    def choices(self, request: LaunchRequest) -> list[Choice]:
        """Return the hosts that could take it now, the one that would be tried first before the others.

        Claims nothing and writes nothing. Another launch is drawn anew: the first need not be the same.

        Raises:
            InvalidInput, NotFound, NoRoom: as for `launch`.
        """
        request = check(request)
        if request.expires is not None:
            moment(request.expires, self._now())
        request = self._wiring.wired(request)
        launch = _Launch(request, str(uuid4()), None, None, self._beside(request))
        for offer in self._offer(launch):
            known = self._facts.targets(set(offer.hosts.values()))
            found = self._ranked(launch, offer, known)
            if found:
                return [Choice(known[one.provider].name, one) for one in found]
        raise self._no_room(request, launch.beside, launch.found)

    # --- candidates ----------------------------------------------------------------------------

    def _offer(self, launch: _Launch) -> Iterator[Offer]:
        self._on_step("asking placement for candidates")
        request = launch.request
        beside = launch.beside
        question = for_launch(candidates_query(request.query))
        return self._offers.of(question, request.host, only=beside.only, is_wide=bool(beside.excluded))

    def _beside(self, request: LaunchRequest, *, is_followed: bool = False, is_fresh: bool = True) -> Beside:
        totals = candidates_query(request.query).totals
        return Beside.read(
            self._cloud,
            namespace=request.namespace,
            group_ref=request.group,
            totals=totals,
            is_followed=is_followed,
            facts=self._facts,
            is_fresh=is_fresh,
        )

    def _ranked(self, launch: _Launch, offer: Offer, known: dict[str, Target]) -> list[Ranked]:
        if offer.hosts:
            launch.found = max(launch.found, Stage.CANDIDATES)
        return self._weighed(launch.request, launch.beside, offer, known)

    def _weighed(
        self, request: LaunchRequest, beside: Beside, offer: Offer, known: Mapping[str, Target]
    ) -> list[Ranked]:
        """Return the candidates of ``offer`` that ``request`` may have, in the order in which they should be tried."""
        networks = self._wiring.virtual(request)
        on_networks = Counter(host for uuid in networks for host in self._facts.on_network(uuid, known))
        group = {provider: beside.weight(provider, target.zone) for provider, target in known.items()}
        load = {provider: busy for provider in known if (busy := self._facts.load(provider)) is not None}
        wishes = Wishes(
            is_packed=request.is_packed,
            image_holders=self._facts.holders(request.image, known),
            networks=len(networks),
            on_networks=on_networks,
            affinities=request.affinities,
            tagged={tag: self._facts.tagged(request.namespace, tag) for tag, _ in request.affinities},
            group=group,
            load=load,
        )
        seed = self._rng.getrandbits(64)
        return ranked(offer, known, seed, wishes=wishes, excluded=beside.excluded, only=beside.only)

    # --- claim ---------------------------------------------------------------------------------

    def _launch(self, launch: _Launch) -> Launched:
        for _ in range(BESIDE_TRIES):
            beside = launch.beside
            launched = self._try_offers(launch)
            if launched is not None:
                return launched
            if launch.beside is not beside:
                continue  # its group was given another place meanwhile, which these offers need not have held
            if not (beside.is_following or beside.may_be_old):
                break
            # Nothing came of the place that another wanted, or of the hosts that were left to its group.
            launch.beside = self._beside(launch.request)
        if launch.outrun:
            raise launch.outrun[-1]  # there may be room there
        raise self._no_room(launch.request, launch.beside, launch.found)

    def _try_offers(self, launch: _Launch) -> Launched | None:
        for offer in self._offer(launch):
            known = self._facts.targets(set(offer.hosts.values()))
            closed: set[str] = set()
            for choice in self._ranked(launch, offer, known):
                if choice.provider in closed:
                    continue
                launched = self._try(launch, offer, choice, known[choice.provider], closed)
                if launched is not None:
                    return launched
        return None

    def _no_room(self, request: LaunchRequest, beside: Beside, found: Stage) -> CloudError:
        """Return what to raise where no host takes ``request``."""
        host = None if request.host is None else self._offers.host(request.host)
        error = self._why_not.no_room(request.query, found, host, excluded=beside.excluded, only=beside.only)
        return beside.no_room(error) if isinstance(error, NoRoom) else error

    def _try(self, launch: _Launch, offer: Offer, choice: Ranked, target: Target, closed: set[str]) -> Launched | None:
        """Try one candidate; ``None``: not this one."""
        if not offer.reserve(choice.index):
            return None
        launched = None
        try:
            for _ in range(BESIDE_TRIES):
                try:
                    launched = self._claim(launch, offer, choice, target, closed)
                    return launched
                except BesideChanged:
                    launch.beside = self._beside(launch.request, is_followed=True)
                    time.sleep(self._rng.uniform(0, _MAX_PAUSE_S))
            raise Conflict("its quota or its group keeps changing", hint="try again")
        finally:
            if launched is None:
                offer.give_back(choice.index)

    def _claim(
        self, launch: _Launch, offer: Offer, choice: Ranked, target: Target, closed: set[str]
    ) -> Launched | None:
        candidate, provider = offer.answer.items[choice.index], choice.provider
        claim = launch.claim = launch.claim or self._begin(launch)
        try:
            claim.refresh()
        except CompareFailed as error:
            raise too_long() from error
        self._on_step(f"claiming room on {target.name}")
        launch.found = Stage.CLAIMED
        try:
            rows = launch.beside.prepare(provider, target.zone)
            claim.take(claim_of(candidate, rows), candidate.mappings, stop=rows.stop)
        except ClaimRefused as refusal:
            if refusal.scope != "host":
                raise launch.beside.exceeded(refusal) from refusal
            if provider in refusal.providers:
                offer.drop(provider)  # for every launch; a group's refusal is of this one alone
            if not refusal.providers or not refusal.providers <= candidate.allocations.keys() - {provider}:
                closed.add(provider)  # else another way to serve it on this host may do: another disk
            self._on_refused(f"{provider} {refusal}")
            return None
        except Outrun as error:
            launch.outrun.append(error)
            if len(launch.outrun) >= OUTRUN_HOSTS:
                raise
            closed.add(provider)
            self._on_refused(f"{provider} {error}")
            return None
        launched = self._request(launch, claim, offer, choice, rows, target)
        if launched is not None:
            return launched
        if claim.is_in_doubt:
            raise Conflict(
                f"{target.name} takes nothing new, and whether it was asked before is not known",
                hint=f"see `eschedule doctor {claim.consumer}`, and launch another where it shows nothing",
            )
        self._on_refused(f"{provider} takes nothing new")
        closed.add(provider)
        claim.release()
        return None

    def _begin(self, launch: _Launch) -> Claim:
        """Write the intent."""
        try:
            return self._with_incarnation(
                lambda incarnation: self._cloud.claims.begin(
                    launch.uuid, namespace=launch.request.namespace, incarnation=incarnation, chosen=launch.chosen
                )
            )
        except CompareFailed as error:
            raise _Begun from error

    def _with_incarnation(self, begin: Callable[[Versioned[Incarnation]], T]) -> T:
        """Return what ``begin`` does with the incarnation; one that is not that of today is read again.

        Raises:
            CompareFailed: it failed with that of today.
            Conflict: it is another one whenever it is read.
        """
        for _ in range(INTENT_TRIES):
            try:
                return begin(self._facts.incarnation())
            except CompareFailed as error:
                if keys.INCARNATION not in error.keys:
                    raise
                self._facts.forget("incarnation")
        raise put_back()

    # --- request -------------------------------------------------------------------------------

    def _request(
        self, launch: _Launch, claim: Claim, offer: Offer, choice: Ranked, rows: Rows, known: Target
    ) -> Launched | None:
        """Write the request; ``None`` if the host does not take it after all."""
        provider = known.provider
        target: Target | None = known
        for attempt in range(REQUEST_TRIES):
            if attempt:
                time.sleep(self._rng.uniform(0, min(_MAX_PAUSE_S, 0.01 * 2**attempt)))
                target = self._facts.targets([provider]).get(provider)
            if target is None:
                return None
            self._on_step(f"telling {target.name}")
            try:
                return self._write(launch, claim, offer, choice, rows, target)
            except CompareFailed as error:
                self._facts.forget(provider, "incarnation")
                self._wiring.forget(launch.request.namespace)
                launch.lost.note(error)
                if claim.is_void():
                    raise too_long() from None
                if launch.beside.is_reason(error):
                    claim.release()
                    raise BesideChanged("its quota or its group has changed meanwhile") from error
            except StoreUnavailable as error:
                if not error.may_be_written:
                    raise
                self._on_step("asking etcd what became of it")
                if claim.settle():
                    return self._found(claim.consumer, target, choice.reasons)
        raise Conflict(f"the request to {provider} lost against others {REQUEST_TRIES} times", hint="try again")

    def _write(
        self, launch: _Launch, claim: Claim, offer: Offer, choice: Ranked, rows: Rows, target: Target
    ) -> Launched:
        request, uuid = launch.request, claim.consumer
        draft = self._wiring.draft(launch.lost)
        order = order_of(
            request,
            uuid,
            target,
            offer.answer.items[choice.index],
            rows,
            self._wiring.ports(draft, request, uuid, target, guard=claim.same_incarnation()),
            now_s=self._now(),
            expires_at_s=launch.expires_at_s,
            group=launch.beside.group_uuid,
            digest=None if launch.chosen is None else launch.chosen.used.digest,
        )
        why = "; ".join(str(reason) for reason in choice.reasons)
        event = ("requested", f"claimed on {target.name}, and asked of it: {why}")
        claim.request(list(order.compares), [*order.operations, *self._cloud.events.begin(INSTANCE, uuid, [event])])
        if launch.beside.group_uuid is not None:
            member = Member(instance_uuid=uuid, provider=target.provider, zone=target.zone)
            self._facts.joined(launch.beside.group_uuid, member)
        return launched_of(order.instance, target.name, is_alive=target.is_alive, reasons=choice.reasons)

    def _found(self, uuid: str, target: Target, reasons: tuple[Reason, ...]) -> Launched:
        found = self._store.get(keys.instance(uuid), Instance)
        if found is None:
            raise Conflict(f"{uuid} was launched, and destroyed by somebody at once")
        return launched_of(found.value, target.name, is_alive=target.is_alive, reasons=reasons)

    def _found_again(self, instance: Instance) -> Launched:
        node: Versioned[Node] | None = self._store.get(keys.node(instance.provider), Node)
        name = instance.provider if node is None else node.value.name
        is_alive = self._store.get(keys.alive(instance.provider), Alive) is not None
        return launched_of(instance, name, is_alive=is_alive, is_repeated=True)
