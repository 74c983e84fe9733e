"""How the programs of others are run that networks need: ``nft`` and ``dnsmasq``.

They are looked for on the daemon's own PATH, which is where `ecompute check` looks: what that says holds. Any thread.
"""

from __future__ import annotations

import os


def environment() -> dict[str, str]:
    """Return all that such a program gets of our environment."""
    return {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
