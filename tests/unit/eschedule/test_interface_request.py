"""Interfaces as they are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import INTERFACE_MODELS
from ecompute.cluster.errors import InvalidInput
from eschedule.cloud.interface_request import (
    DEFAULT,
    LIMIT,
    InterfaceRequest,
    check_all,
    no_two_alike,
    read_interface,
    read_interfaces,
)

UUID = "8a0f7f52-57f0-4b3e-93f6-1a9f3e6b1c11"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("web", InterfaceRequest(network="web")),
        (UUID, InterfaceRequest(network=UUID)),
        ("web@10.0.0.5", InterfaceRequest(network="web", address="10.0.0.5")),
        ("web@FD00::5", InterfaceRequest(network="web", address6="fd00::5")),
        ("web@none", InterfaceRequest(network="web", has_address=False)),
        (f"network_uuid={UUID}", InterfaceRequest(network=UUID)),
        ("network=web,model=e1000", InterfaceRequest(network="web", model="e1000")),
        ("address=10.0.0.5", InterfaceRequest(address="10.0.0.5")),
        (
            "network_uuid=web, address=10.0.0.5, address=fd00::5, macaddress=52:54:00:AA:00:01, model=pcnet",
            InterfaceRequest("web", "10.0.0.5", "fd00::5", "52:54:00:aa:00:01", "pcnet"),
        ),
    ],
)
def test_what_is_written_is_what_is_asked_for(text: str, wanted: InterfaceRequest) -> None:
    assert read_interface(text) == wanted
    assert check_all([wanted]) == (wanted,)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "names no network"),
        ("@10.0.0.5", "names no network"),
        ("web@", "names no network"),
        ("web@10.0.0.5/24", "is no address"),
        ("web@10.0.0.300", "is no address"),
        ("web@fe80::1%eth0", "is no address"),
        ("web@10.0.0.5@10.0.0.6", "is no address"),
        ("none@10.0.0.5", "stands for no interface"),
        ("network=none", "stands for no interface"),
        ("network=web,address=10.0.0.5,address=10.0.0.6", "two addresses were asked for"),
        ("network=web,address=none,address=10.0.0.6", "no address and an address"),
        ("network=web,address=10.0.0.6,address=none", "no address and an address"),
        ("network=web,network_uuid=db", "given twice"),
        ("network=web,model", "is not KEY=VALUE"),
        ("network=web,model=", "model has no value"),
        ("network=web,colour=red", "says nothing of an interface"),
        ("network=web,model=e2000", "is no model of an interface"),
        ("network=web,macaddress=01:00:5e:00:00:01", "is a multicast MAC"),
        ("network=web,macaddress=06:ec:01:00:00:01", "kept for devices of the hosts"),
        ("network=web,macaddress=x", "is not a MAC"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(text: str, what: str) -> None:
    with pytest.raises(InvalidInput, match=what) as caught:
        read_interface(text)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_an_interface_or_is_refused(text: str) -> None:
    try:
        found = read_interface(text)
    except InvalidInput:
        return
    assert check_all([found]) == (found,)


def test_without_any_network_there_is_the_default_one_and_with_none_there_is_none() -> None:
    assert read_interfaces([]) == DEFAULT
    assert read_interfaces(["none"]) == ()
    with pytest.raises(InvalidInput, match="give none alone"):
        read_interfaces(["none", "web"])


def test_interfaces_keep_their_order() -> None:
    names = ["db", "web", "a", "web"]
    assert [one.network for one in read_interfaces(names)] == names


def test_more_than_eight_are_too_many() -> None:
    check_all(DEFAULT * LIMIT)
    with pytest.raises(InvalidInput, match="9 interfaces are too many; at most 8"):
        check_all(DEFAULT * (LIMIT + 1))


@pytest.mark.parametrize("model", sorted(INTERFACE_MODELS))
def test_every_model_that_a_host_may_make_may_be_asked_for(model: str) -> None:
    assert check_all([InterfaceRequest(model=model)])[0].model == model


@pytest.mark.parametrize(
    "texts",
    [
        ["web@10.0.0.5", "web@10.0.0.5"],
        ["web@fd00::5", "network=web,address=fd00:0::5"],
        ["network=web,mac=52:54:00:00:00:01", "network=db,mac=52:54:00:00:00:01"],
    ],
)
def test_what_only_one_interface_can_have_is_not_given_to_two(texts: list[str]) -> None:
    with pytest.raises(InvalidInput, match="is asked for 2 times"):
        read_interfaces(texts)


def test_the_same_address_on_two_networks_is_two_addresses() -> None:
    no_two_alike([InterfaceRequest("web", "10.0.0.5"), InterfaceRequest("db", "10.0.0.5"), *DEFAULT, *DEFAULT])
