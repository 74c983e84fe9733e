"""The end of a guest's console log, asked of its host."""

from __future__ import annotations

from ecompute.cluster.asking import CONSOLE, ask
from ecompute.cluster.documents import Instance, Operation
from ecompute.cluster.errors import DeadlineExceeded, NotFound
from eschedule.cloud.connection import Cloud

LIMIT_BYTES = 64 * 1024
"""The most that a host answers."""


def console_log(cloud: Cloud, instance: Instance, *, limit_bytes: int, timeout_s: float) -> str:
    """Return at most ``limit_bytes`` from the end of the log, as the guest wrote it.

    Raises:
        NotFound: there is no log (yet).
        DeadlineExceeded: the host does not answer.
    """
    question = Operation(kind=CONSOLE, instance_uuid=instance.uuid, limit_bytes=limit_bytes)
    answered = ask(cloud.store, instance.provider, question, timeout_s=timeout_s)
    if answered is None:
        raise DeadlineExceeded(
            f"the host of {instance.name} has not answered within {timeout_s:g} s",
            hint=f"see `eschedule doctor {instance.uuid}`",
        )
    if answered.answer is None:
        raise NotFound(
            f"{instance.name}: {answered.error}", hint=f"has it started yet? see `eschedule doctor {instance.uuid}`"
        )
    return answered.answer
