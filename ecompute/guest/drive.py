"""What is on an instance's config drive, by the kind that was asked for. Pure.

Any thread may call it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ecompute.cluster.documents import Assignment, ConfigDrive, Secrets
from ecompute.guest import metadata, nocloud


@dataclass(frozen=True)
class Drive:
    label: str
    files: dict[str, bytes]


def drive(assignment: Assignment, secrets: Secrets | None) -> Drive:
    """Return the drive of an instance that has one.

    Raises:
        NotFound: the assignment says that user data belongs to it, and ``secrets`` has none.
        InvalidInput: an address or a gateway of the assignment is none.
    """
    if assignment.spec.config_drive is ConfigDrive.NOCLOUD:
        return Drive(nocloud.LABEL, nocloud.documents(assignment, secrets))
    assert assignment.spec.config_drive is ConfigDrive.OPENSTACK
    return Drive(metadata.LABEL, metadata.documents(assignment, secrets))
