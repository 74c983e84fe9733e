"""A machine of a fleet, without a daemon on it."""

from __future__ import annotations

from ecompute.fleet.machine import Conduct, FleetMachine
from ecompute.inventory import Measured

PROVIDER = "00000000-0000-0000-0000-00000000000a"


def test_asking_for_its_guests_leaves_no_connection_open() -> None:
    machine = FleetMachine("fleet-1", Measured(8, 16_384, 100), Conduct())
    connection = machine.machine().hypervisor(PROVIDER, is_stopping=lambda: False)
    watchers = len(connection._machine.watchers)  # type: ignore[attr-defined]
    for _ in range(3):
        assert machine.guests() == {}
    assert len(connection._machine.watchers) == watchers  # type: ignore[attr-defined]
    machine.cut()
    assert machine.guests() == {}, "its guests go on when the daemon does not"
    connection.close()
