"""Launch many instances, all or none: one packing, one claim, one commit.

``pack → record and intents → one claim → requests → commit``. Nothing is written before a packing is
found. The claim of all is one write to placement; refused, it left nothing, and the gang is packed
anew without the host that refused, a bounded number of times. The requests are written in transactions
of as many members as fit; their hosts do nothing before the commit, which compares once more that every
host takes new instances. A gang that cannot be committed is taken back, and where a host was closed
meanwhile it is begun anew. See `ecompute.cluster.gangs` for what a death at any point leaves.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from uuid import uuid4

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
from ecompute.cluster.expiring import moment
from ecompute.cluster.gangs import GangClaim, Gangs
from ecompute.cluster.placement import CandidatesQuery, candidates_query
from ecompute.cluster.store import Compare
from ecompute.cluster.upkeep.finish import Finisher
from eschedule.cloud.connection import who
from eschedule.cloud.ports import Lost
from eschedule.scheduler.batch import Batch, Placed, admin_unchanged
from eschedule.scheduler.beside import Beside, BesideChanged, Rows
from eschedule.scheduler.facts import Target
from eschedule.scheduler.launch import OUTRUN_HOSTS, REQUEST_TRIES, Launcher
from eschedule.scheduler.launched import Launched, launched_of
from eschedule.scheduler.order import claim_of
from eschedule.scheduler.pack import Packing, Way
from eschedule.scheduler.question import for_launch
from eschedule.scheduler.request import LaunchRequest
from eschedule.scheduler.rounds import Gang, GangMember, Key, Round, Rounds, key_of
from eschedule.scheduler.together import checked_requests, named, naming
from eschedule.scheduler.whynot import Stage, all_lost, too_long

GANG_TRIES = 4
"""How often a gang is begun: anew where a host was closed between its request and the commit."""
CLAIM_TRIES = 12
"""How often the claim of all is tried, each time packed anew."""
PASSES = 4
"""How often placement is asked all over again after claims were refused."""
COMMIT_TRIES = 8
HOSTS_AT_ONCE = 100
"""Of how many hosts one transaction compares that they take new instances."""
_MAX_PAUSE_S = 0.25


class _Closed(Exception):
    """A host that has members takes nothing new any more, or what was claimed beside it has changed."""


class _Refused(Exception):
    """The claim was refused, and may be tried otherwise."""


class GangLauncher(Launcher):
    """A launcher of gangs as well. Safe from several threads."""

    def launch_all(self, requests: Sequence[LaunchRequest]) -> list[Launched]:
        """Launch all of ``requests``, or none; return them in the same order.

        Raises:
            InvalidInput: one of them cannot be meant, or there are none, or too many. Nothing was claimed.
            NotFound: a host or group is not there.
            NoRoom: they do not fit together. Nothing stays claimed.
            ClaimRefused: a quota is used up. Nothing stays claimed.
            OnHold: etcd holds no cloud, or has lost it.
            Conflict: see its text. Nothing stays claimed, or it is left to the lead.
            Unavailable: what was written is found by the lead after its grace period: all of it goes, or,
                if it was committed by then, all of it runs.
        """
        checked = [self._wiring.wired(request) for request in checked_requests(requests)]
        for _ in range(GANG_TRIES):
            gang = self._gang(checked)
            try:
                return self._launch_gang(gang)
            except _Closed as closed:
                self._take_back(gang)
                self._on_refused(f"gang {gang.uuid}: {closed}; all of it was taken back")
                self._pause()
            except Unavailable as error:
                self._give_back(gang)
                if gang.claim is not None:
                    error.hint = f"{error.hint}; then see `eschedule list`: all of them are there, or none"
                raise
            except BaseException:
                self._take_back(gang)
                raise
        raise Conflict("its hosts are closed faster than it can be launched", hint="see `eschedule hosts`")

    def _gang(self, requests: Sequence[LaunchRequest]) -> Gang:
        now_s = self._now()
        besides = self._besides(requests)
        questions: dict[Key, CandidatesQuery] = {}
        members = []
        for number, request in enumerate(requests, 1):
            if key_of(request) not in questions:
                questions[key_of(request)] = for_launch(candidates_query(request.query))
            with naming(requests, number):
                expires_at_s = None if request.expires is None else moment(request.expires, now_s)
            members.append(GangMember(request, str(uuid4()), expires_at_s, besides[_beside_key(request)]))
        return Gang(str(uuid4()), requests[0].namespace, members, questions)

    def _besides(self, requests: Sequence[LaunchRequest]) -> dict[tuple[str | None, str], Beside]:
        found: dict[tuple[str | None, str], Beside] = {}
        for number, request in enumerate(requests, 1):
            if _beside_key(request) not in found:
                with naming(requests, number):
                    found[_beside_key(request)] = self._beside(request)
        return found

    def _launch_gang(self, gang: Gang) -> list[Launched]:
        placed = self._claim_all(gang)
        claim = gang.claim
        assert claim is not None
        hosts = self._request_all(gang, claim, placed)
        self._commit(claim, hosts)
        return [
            launched_of(one.instance, one.target.name, is_alive=one.target.is_alive, reasons=one.reasons)
            for one in placed
            if one.instance is not None
        ]

    # --- claim ---------------------------------------------------------------------------------

    def _claim_all(self, gang: Gang) -> list[Placed]:
        rounds = Rounds(self._offers, self._facts, self._weighed, self._rng)
        around: Round | None = None
        for _ in range(PASSES):
            gang.was_refused = False
            gang.refusing.clear()
            gang.closed.clear()
            self._on_step("asking placement for candidates")
            for around in rounds.all(gang):
                while gang.tries < CLAIM_TRIES:
                    packing = rounds.pack(gang, around)
                    if packing.unplaced is not None:
                        break
                    try:
                        return self._claim_packed(gang, around, packing)
                    except _Refused:
                        gang.was_refused = True
                        gang.tries += 1
                        self._pause()
            if not gang.was_refused or gang.tries >= CLAIM_TRIES:
                break
        raise self._do_not_fit(gang, rounds, around)

    def _claim_packed(self, gang: Gang, around: Round, packing: Packing) -> list[Placed]:
        placed = [self._placed(member, around, packing.placed[member.uuid]) for member in gang.members]
        if not self._reserve(gang, placed):
            raise _Refused
        is_taken = False
        try:
            claim = gang.claim = gang.claim or self._begin_gang(gang)
            self._refresh(claim, is_due=gang.tries > 0)
            rows: dict[tuple[int, str], Rows] = {}
            for one in placed:
                key = (id(one.beside), one.provider)
                if key not in rows:
                    rows[key] = self._prepare(gang, one)
                one.rows = rows[key]
            self._on_step(f"claiming room for {len(placed)} on {len({one.provider for one in placed})} hosts")
            claim.take(
                {one.uuid: (claim_of(one.candidate, one.rows), one.candidate.mappings) for one in placed},
                stop=frozenset().union(*(one.rows.stop for one in placed)),
            )
            is_taken = True
            return placed
        except BesideChanged as changed:
            besides = self._besides([member.request for member in gang.members])
            for member in gang.members:
                member.beside = besides[_beside_key(member.request)]
            raise _Refused from changed
        except ClaimRefused as refusal:
            if refusal.scope != "host":
                raise self._over_quota(gang, refusal) from refusal
            self._leave_out(gang, around, placed, refusal.providers)
            self._on_refused(f"{', '.join(sorted(refusal.providers)) or 'placement'} {refusal}")
            raise _Refused from refusal
        except Outrun as error:
            gang.outrun += 1
            if gang.outrun >= OUTRUN_HOSTS:
                raise
            self._on_refused(str(error))
            raise _Refused from error
        finally:
            if not is_taken:
                self._give_back(gang)

    def _prepare(self, gang: Gang, one: Placed) -> Rows:
        try:
            return one.beside.prepare(one.provider, one.target.zone)
        except ClaimRefused:
            gang.closed.add(one.provider)
            raise

    def _leave_out(self, gang: Gang, around: Round, placed: Sequence[Placed], refusing: frozenset[str]) -> None:
        """Leave ``refusing`` out of the next packings; hosts themselves out of other launches as well."""
        gang.refusing |= refusing
        # What is claimed beside a host (a group's class) stands in no candidate.
        gang.closed |= {one.provider for one in placed if refusing & one.rows.allocations.keys()}
        for offer in around.offers.values():
            for host in refusing & {one.provider for one in placed}:
                offer.drop(host)

    def _placed(self, member: GangMember, around: Round, way: Way) -> Placed:
        key = key_of(member.request)
        offer = around.offers[key]
        return Placed(
            request=member.request,
            uuid=member.uuid,
            expires_at_s=member.expires_at_s,
            beside=member.beside,
            target=around.known[way.host],
            candidate=offer.answer.items[way.index],
            offer=offer,
            index=way.index,
            reasons=around.reasons[id(member.beside), key, way.index],
        )

    def _reserve(self, gang: Gang, placed: Sequence[Placed]) -> bool:
        for one in placed:
            if not one.offer.reserve(one.index):
                self._give_back(gang)
                return False
            gang.reserved.append((one.offer, one.index))
        return True

    def _give_back(self, gang: Gang) -> None:
        while gang.reserved:
            offer, index = gang.reserved.pop()
            offer.give_back(index)

    def _begin_gang(self, gang: Gang) -> GangClaim:
        self._on_step(f"announcing {len(gang.members)} instances")
        gangs = Gangs(self._store, self._cloud.placement, writer=who(), rng=self._rng, now=self._now)
        try:
            return self._with_incarnation(
                lambda incarnation: gangs.begin(
                    gang.uuid,
                    [member.uuid for member in gang.members],
                    namespace=gang.namespace,
                    incarnation=incarnation,
                )
            )
        except CompareFailed as error:
            raise too_long() from error  # its record was ended while its intents were written

    def _refresh(self, claim: GangClaim, *, is_due: bool = False) -> None:
        try:
            claim.refresh(is_due=is_due)
        except CompareFailed as error:
            raise too_long() from error

    def _over_quota(self, gang: Gang, refusal: ClaimRefused) -> CloudError:
        asked: Counter[str] = Counter(INSTANCES=len(gang.members))
        for member in gang.members:
            asked.update(candidates_query(member.request.query).totals)
        return gang.members[0].beside.exceeded(refusal, asked)

    def _do_not_fit(self, gang: Gang, rounds: Rounds, around: Round | None) -> CloudError:
        """Return what to raise: what one of its members lacks even alone, or how many of them would fit."""
        count = len(gang.members)
        if gang.tries >= CLAIM_TRIES or around is None:
            return all_lost()
        unplaced = rounds.pack(gang, around).unplaced
        stuck = next((member for member in gang.members if member.uuid == unplaced), gang.members[-1])
        for member in (stuck, gang.members[0]):
            if rounds.pack(gang, around, [member]).unplaced is not None:
                is_offered = bool(around.offers[key_of(member.request)].hosts)
                found = Stage.CANDIDATES if is_offered else Stage.NO_CANDIDATES
                error = self._no_room(member.request, member.beside, Stage.CLAIMED if gang.was_refused else found)
                return named(error, gang.requests, gang.members.index(member) + 1)
        fit, over = 1, count
        while over - fit > 1:
            middle = (fit + over) // 2
            if rounds.pack(gang, around, gang.members[:middle]).unplaced is None:
                fit = middle
            else:
                over = middle
        return stuck.beside.no_room(
            NoRoom(
                f"{count} instances do not fit together: there is room for {fit} of them",
                hint="launch fewer, or see `eschedule hosts`",
            )
        )

    # --- requests ------------------------------------------------------------------------------

    def _request_all(self, gang: Gang, claim: GangClaim, placed: Sequence[Placed]) -> dict[str, Target]:
        """Write all requests; return the hosts as they were compared."""
        hosts: dict[str, Target] = {}
        done, failures, lost = 0, 0, Lost()
        while done < len(placed):
            self._refresh(claim)
            self._on_step(f"telling the hosts: {done} of {len(placed)}")
            batch = self._batch(gang, claim, placed[done:], lost)
            members = [one.uuid for one in batch.members]
            try:
                claim.request(members, batch.compares, batch.operations)
            except CompareFailed as error:
                failures += 1
                lost.note(error)
                if any(one.beside.is_reason(error) for one in batch.members):
                    raise _Closed("its quota or its group has changed") from error
                self._again(gang, claim, placed, failures)
                continue
            except StoreUnavailable as error:
                if not error.may_be_written:
                    raise
                self._on_step("asking etcd what became of it")
                if not claim.settle(members):
                    continue
            hosts |= {one.provider: one.target for one in batch.members}
            done += len(members)
            lost = Lost()
        return hosts

    def _batch(self, gang: Gang, claim: GangClaim, todo: Sequence[Placed], lost: Lost) -> Batch:
        batch, draft = Batch(claim.fits), self._wiring.draft(lost)
        for one in todo:
            ports = self._wiring.ports(draft, one.request, one.uuid, one.target, guard=claim.same_incarnation())
            order = one.order(ports, gang=gang.uuid, now_s=self._now())
            why = "; ".join(str(reason) for reason in one.reasons)
            said = f"claimed on {one.target.name} with {len(gang.members) - 1} others: {why}"
            if not batch.add(one, order, self._cloud.events.begin("instance", one.uuid, [("requested", said)])):
                break
        return batch

    def _again(self, gang: Gang, claim: GangClaim, placed: Sequence[Placed], failures: int) -> None:
        """After a comparison that failed: read again what was compared.

        Raises:
            Conflict: it took too long, or failed too often.
            _Closed: a host takes nothing new any more.
        """
        if claim.is_void():
            claim.is_in_doubt = True
            raise too_long()
        if failures >= REQUEST_TRIES:
            raise Conflict(f"its requests lost against others {failures} times", hint="try again")
        self._pause()
        self._wiring.forget(gang.namespace)
        providers = {one.provider for one in placed}
        self._facts.forget("incarnation", *providers)
        targets = self._facts.targets(providers)
        for one in placed:
            if one.provider not in targets:
                raise _Closed(f"{one.target.name} takes nothing new any more")
            one.target = targets[one.provider]

    # --- commit --------------------------------------------------------------------------------

    def _commit(self, claim: GangClaim, hosts: dict[str, Target]) -> None:
        for attempt in range(COMMIT_TRIES):
            self._on_step("letting the hosts begin")
            try:
                compares: list[Compare] = [admin_unchanged(target) for _, target in sorted(hosts.items())]
                while len(compares) > HOSTS_AT_ONCE:
                    claim.verify(compares[:HOSTS_AT_ONCE])
                    compares = compares[HOSTS_AT_ONCE:]
                claim.commit(compares)
                return
            except CompareFailed:
                if claim.is_void():
                    claim.is_in_doubt = True
                    raise too_long() from None
                if attempt:
                    self._pause()
                self._facts.forget("incarnation", *hosts)
                found = self._facts.targets(hosts)
                for provider, target in hosts.items():
                    if provider not in found:
                        raise _Closed(f"{target.name} takes nothing new any more") from None
                hosts |= found
        raise _Closed("its hosts keep changing")

    def _take_back(self, gang: Gang) -> None:
        """Undo all that was done for ``gang``; what cannot be undone now is the lead's."""
        self._give_back(gang)
        if gang.claim is None:
            return
        finisher = Finisher(self._store, self._cloud.placement, self._cloud.events)
        try:
            if not gang.claim.cancel(finisher.withdraw):
                self._on_step(f"left gang {gang.uuid} to the lead")
        except CloudError as error:
            self._on_step(f"left gang {gang.uuid} to the lead: {error}")

    def _pause(self) -> None:
        time.sleep(self._rng.uniform(0, _MAX_PAUSE_S))


def _beside_key(request: LaunchRequest) -> tuple[str | None, str]:
    return (request.group, request.query)
