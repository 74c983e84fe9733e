"""``eschedule audit``."""

from __future__ import annotations

import click

from ecompute.cluster.terminal import INTERRUPTED, say
from eschedule.cli.output import format_option, show_rows
from eschedule.cli.progress import Progress
from eschedule.cli.settings import Settings

FIELDS = ("what", "subject", "where", "since", "repair")
COLUMNS = FIELDS
GRACE_S = 60.0


@click.command()
@click.option("--repair", "is_repairing", is_flag=True, help="Do what the table says, as the lead does.")
@click.option(
    "--grace", "grace_s", type=float, default=GRACE_S, show_default=True, metavar="SECONDS", help="Between the looks."
)
@format_option
@click.pass_obj
def audit(settings: Settings, is_repairing: bool, grace_s: float, output: str) -> int:
    """Compare placement, etcd and what hosts report, and show what does not fit together.

    Two looks have to agree, so it waits between them: what is on its way is no leak. The lead does
    the same every 15 minutes, and repairs. What every host finds on itself is shown with it; that is
    the host's to repair. Exit status 1 when anything is wrong, repaired or not.

    \b
    Example:  eschedule audit
              eschedule audit --repair -o json
    """
    with settings.cloud() as cloud, Progress() as progress:
        from eschedule.cloud.audit import audit as look_twice
        from eschedule.cloud.hosts import Hosts

        say(f"looking twice, {grace_s:g} s apart")
        try:
            found = look_twice(cloud, grace_s=grace_s, is_repairing=is_repairing, on_step=progress.step)
        except KeyboardInterrupt:
            progress.clear()
            say("interrupted; what was repaired until then stays so, and the next audit goes on")
            return INTERRUPTED
        progress.clear()
        names = Hosts(cloud).names()
    rows = [
        {
            "what": str(finding.what),
            "subject": finding.subject,
            "where": [names.get(provider, provider) for provider in finding.where],
            "since": finding.since or found.since,
            "repair": finding.repair,
        }
        for finding in found.findings
    ]
    show_rows(rows, output, fields=FIELDS, columns=COLUMNS, name="subject")
    if output == "table" and not rows:
        say("nothing is wrong: two looks found placement, etcd and the hosts' reports to agree")
    elif output == "table" and any(finding.is_wrong and finding.since is None for finding in found.findings):
        if not is_repairing:
            say("next: eschedule audit --repair, or wait for the lead, which audits every 15 minutes")
    elif output == "table" and not found.is_clean:
        say("what hosts find on themselves they look at again every two minutes, and repair where they can")
    return 0 if found.is_clean else 1
