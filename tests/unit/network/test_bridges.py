from __future__ import annotations

import logging

import pytest

from ecompute.network.bridges import NamedBridges
from ecompute.network.fake import FakeLinks


def test_a_host_says_by_a_trait_which_of_the_named_bridges_it_has(caplog: pytest.LogCaptureFixture) -> None:
    links = FakeLinks()
    links.bridges = {"br0"}
    named = NamedBridges(links, {"lan": "br0", "rack-2": "br1"})
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert named.traits() == {"CUSTOM_PHYSNET_LAN"}
        assert caplog.messages == [
            "this host has no bridge br1, which operators call rack-2: it takes no guests of the networks on it; "
            "make it, or change `bridges` in compute.yaml"
        ]
        links.bridges = {"br0", "br1"}
        assert named.traits() == {"CUSTOM_PHYSNET_LAN", "CUSTOM_PHYSNET_RACK_2"}
    assert caplog.messages[1:] == ["the bridge br1, which operators call rack-2, is there again"]
