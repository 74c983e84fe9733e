"""The bridges to which operators gave a name: which of them this host has, and that it says so.

A host without one of them takes no guests of the networks on it: it lacks the trait for which a launch
on such a network asks. What is missing is said once, and so is that it is there again.

One thread at a time may call this.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ecompute.cluster.given import physnet_trait
from ecompute.network.links import Links

log = logging.getLogger(__name__)


class NamedBridges:
    """
    Args:
        bridges: what operators call them, and their names on this host.
    """

    def __init__(self, links: Links, bridges: Mapping[str, str]) -> None:
        self._links = links
        self._bridges = bridges
        self._missing: frozenset[str] = frozenset()

    def traits(self) -> frozenset[str]:
        """Return the traits of the bridges that are there now.

        Raises:
            NetworkError: it cannot be said.
        """
        there = {name for name, bridge in self._bridges.items() if self._links.has_bridge(bridge)}
        missing = frozenset(self._bridges.keys() - there)
        for name in sorted(missing - self._missing):
            log.error(
                "this host has no bridge %s, which operators call %s: it takes no guests of the networks on it; make "
                "it, or change `bridges` in compute.yaml",
                self._bridges[name],
                name,
            )
        for name in sorted(self._missing - missing):
            log.info("the bridge %s, which operators call %s, is there again", self._bridges[name], name)
        self._missing = missing
        return frozenset(map(physnet_trait, there))
