"""``eschedule doctor``."""

from __future__ import annotations

import click

from eschedule.cli.main import Settings
from eschedule.cli.output import format_option, show_one


@click.command()
@click.argument("instance")
@format_option
@click.pass_obj
def doctor(settings: Settings, instance: str, output: str) -> int:
    """Show what is wanted, claimed, assigned, seen and found, and who has to take the next step.

    Exit status 1 when it waits for something that will not come by itself.

    \b
    Example:  eschedule doctor web-1
    """
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.instances import Instances

    cloud = Cloud.from_file(settings.config)
    try:
        d = Instances(cloud).diagnose(instance, settings.namespace)
    finally:
        cloud.close()
    wanted, assigned, seen, host = d.instance, d.assignment, d.seen, d.host
    show_one(
        {
            "name": None if wanted is None else wanted.name,
            "uuid": d.uuid,
            "intent": None if d.intent is None else f"{d.intent.kind} by {d.intent.writer} at {d.intent.made_at}",
            "wanted": "nothing"
            if wanted is None
            else f"{wanted.state}, generation {wanted.generation}, epoch {wanted.epoch}",
            "claimed": "; ".join(
                f"{provider}: " + ", ".join(f"{name} {amount}" for name, amount in sorted(amounts.items()))
                for provider, amounts in d.claim.allocations.items()
            )
            or "nothing",
            "assigned": "nothing"
            if assigned is None
            else f"{assigned.role}, generation {assigned.generation}, epoch {assigned.epoch}",
            "seen": "nothing"
            if seen is None
            else f"{seen.state}{', gone' if seen.is_gone else ''}, generation {seen.generation}, epoch {seen.epoch}, "
            f"at {seen.reported_at}",
            "found": "nothing known"
            if seen is None
            else f"power {seen.power}, {'nobody asked for it' if not seen.is_assigned else 'asked for'}",
            "error": (wanted.error if wanted is not None else None) or (seen.error if seen is not None else None),
            "host": None
            if host is None
            else f"{host.name}, {'answers' if d.is_host_alive else 'does not answer'}"
            + (f", on hold: {host.hold}" if host.hold else ""),
            "waits_for": d.waits_for,
        },
        output,
        name="uuid",
    )
    return 0 if d.waits_for == "nothing" else 1
