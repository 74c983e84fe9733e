"""What to say of a query that names a class or a trait that placement does not know. Reads, and only then."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from ecompute.cluster.closing import CLASSES
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.given import physical_of
from eschedule.scheduler.request import is_internal

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement

_NAME = re.compile(r"\b[A-Z][A-Z0-9_]{2,}\b")


def explained(error: InvalidInput, placement: Placement) -> InvalidInput:
    """Return the refusal of a query in placement's words, with what might have been meant.

    Raises:
        Unavailable: placement does not answer any more.
    """
    text = str(error.args[0])
    if not re.search(r"[Nn]o such (resource class|trait)", text):
        return error
    bridges = [bridge for trait in _NAME.findall(text) if (bridge := physical_of(trait)) is not None]
    if bridges:
        return InvalidInput(
            f"no host has a bridge called {bridges[0]}", hint="name it under `bridges` in compute.yaml of those that do"
        )
    classes, traits = placement.names()
    known = sorted((c for c in classes if not is_internal(c)) if "resource class" in text else traits)
    unknown = [name for name in _NAME.findall(text) if name not in known]
    near = [match for name in unknown for match in difflib.get_close_matches(name, known, n=2)]
    what = "resource classes" if "resource class" in text else "traits"
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"no host has ever had it; the {what} that are known include {', '.join(_common(known))}"
    )
    return InvalidInput(text.rstrip("."), hint=hint)


def _common(known: list[str]) -> list[str]:
    ours = [name for name in known if name.startswith("CUSTOM_")]
    return ours[:3] or [name for name in sorted(CLASSES) if name in known] or known[:3]
