"""``eschedule doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import printable, put
from eschedule.cli.output import format_option, show_one, table
from eschedule.cli.parameters import instance_argument
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from eschedule.cloud.diagnosis import Diagnosis


@click.command()
@instance_argument
@format_option
@click.pass_obj
def doctor(settings: Settings, instance: str, output: str) -> int:
    """Show what is wanted, claimed, assigned, seen and found, and who has to take the next step.

    Takes the uuid of something that is only half there, too: a claim, an intent, a report. Exit
    status 1 while it waits for anybody.

    \b
    Example:  eschedule doctor web-1
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.diagnosis import diagnose
        from eschedule.cloud.hosts import Hosts

        found = diagnose(cloud, instance, settings.namespace)
        hosts = Hosts(cloud).names()
    if output == "table":
        put(render(found, hosts), end="")
    else:
        show_one(describe(found, hosts), output, name="uuid")
    return 1 if found.is_waiting else 0


def describe(diagnosis: Diagnosis, hosts: dict[str, str]) -> dict[str, Any]:
    """Return ``diagnosis`` for programs: each part an object, or null where there is none."""
    d = diagnosis
    return {
        "uuid": d.uuid,
        "name": None if d.instance is None else d.instance.name,
        "namespace": None if d.instance is None else d.instance.namespace,
        "intent": None
        if d.intent is None
        else {"kind": d.intent.kind, "writer": d.intent.writer, "made_at": d.intent.made_at},
        "wanted": None
        if d.instance is None
        else {
            "state": str(d.instance.state),
            "generation": d.instance.generation,
            "epoch": d.instance.epoch,
            "error": d.instance.error,
        },
        "claimed": {provider: dict(amounts) for provider, amounts in d.claim.allocations.items()} or None,
        "assigned": None
        if d.assignment is None
        else {"role": str(d.assignment.role), "generation": d.assignment.generation, "epoch": d.assignment.epoch},
        "seen": None
        if d.seen is None
        else {
            "state": str(d.seen.state),
            "generation": d.seen.generation,
            "epoch": d.seen.epoch,
            "error": d.seen.error,
            "reported_at": d.seen.reported_at,
        },
        "found": None
        if d.seen is None
        else {
            "power": str(d.seen.power),
            "addresses": [address.split("/")[0] for address in d.seen.addresses],
            "is_gone": d.seen.is_gone,
            "is_assigned": d.seen.is_assigned,
        },
        "host": None
        if d.provider is None
        else {
            "name": hosts.get(d.provider, d.provider),
            "provider": d.provider,
            "is_alive": d.is_host_alive,
            "hold": None if d.host is None else d.host.hold,
        },
        "waits_for": d.waits_for,
        "is_waiting": d.is_waiting,
    }


def render(diagnosis: Diagnosis, hosts: dict[str, str]) -> str:
    """Return ``diagnosis`` for people: who says what, a line each, and who is next."""
    d = diagnosis
    name = "nobody's instance" if d.instance is None else f"{d.instance.name}, namespace {d.instance.namespace}"
    host = "" if d.provider is None else hosts.get(d.provider, d.provider)
    lines = [("WHAT", "FROM", "SAYS")]
    if d.intent is not None:
        lines.append(("intent", "etcd", f"to {d.intent.kind} it, by {d.intent.writer}, at {d.intent.made_at}"))
    lines += [
        ("wanted", "etcd", _wanted(d)),
        ("claimed", "placement", _claimed(d, hosts)),
        ("assigned", "etcd", _assigned(d, host)),
        ("seen", host or "its host", _seen(d)),
        ("found", host or "its host", _found(d)),
        ("host", "etcd", _host(d, host)),
    ]
    return f"{printable(name)} ({d.uuid})\n\n{table(lines)}\nwaits for: {printable(d.waits_for)}\n"


def _wanted(d: Diagnosis) -> str:
    if d.instance is None:
        return "nothing"
    what = {"initial": "that it runs", "deleting": "that it is gone"}.get(str(d.instance.state))
    if what is None:
        what = f"nothing any more: {d.instance.error or d.instance.state}"
    return f"{what} (generation {d.instance.generation}, epoch {d.instance.epoch})"


def _claimed(d: Diagnosis, hosts: dict[str, str]) -> str:
    claims = [
        ", ".join(f"{name} {amount}" for name, amount in sorted(amounts.items()))
        + f" on {hosts.get(provider, provider)}"
        for provider, amounts in d.claim.allocations.items()
    ]
    return "; ".join(claims) or "nothing"


def _assigned(d: Diagnosis, host: str) -> str:
    if d.assignment is None:
        return "nothing"
    return f"{d.assignment.role} on {host} (generation {d.assignment.generation}, epoch {d.assignment.epoch})"


def _seen(d: Diagnosis) -> str:
    if d.seen is None:
        return "no report yet"
    error = f": {d.seen.error}" if d.seen.error else ""
    return (
        f"{d.seen.state}{error} (generation {d.seen.generation}, epoch {d.seen.epoch}, reported {d.seen.reported_at})"
    )


def _found(d: Diagnosis) -> str:
    if d.seen is None:
        return "not known"
    if d.seen.is_gone:
        return "nothing of it"
    uninvited = "" if d.seen.is_assigned else ", though nobody asked for it"
    return f"a guest, power {d.seen.power}{uninvited}"


def _host(d: Diagnosis, host: str) -> str:
    if d.provider is None:
        return "none chosen yet"
    hold = f", and is on hold: {d.host.hold}" if d.host is not None and d.host.hold is not None else ""
    return f"{host} {'answers' if d.is_host_alive else 'does not answer'}{hold}"
