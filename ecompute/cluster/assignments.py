"""What a host is told of an instance. Pure.

Everyone who tells a host, or tells it again, makes the assignment here, so that what the host is
given says the same whoever wrote it.
"""

from __future__ import annotations

from ecompute.cluster.documents import Assignment, Instance, Role


def assignment_of(instance: Instance, role: Role = Role.RUN) -> Assignment:
    """Return the assignment that ``instance`` stands for on its host, at its generation and epoch."""
    return Assignment(
        uuid=instance.uuid,
        namespace=instance.namespace,
        name=instance.name,
        role=role,
        generation=instance.generation,
        epoch=instance.epoch,
        spec=instance.spec,
        gang=instance.gang,
    )
