"""Many hosts in one process, to try the cloud on: the daemon's own code, upon machines that are fakes.

`Fleet` is the way in; `machine` makes the machines, `services` the ways to etcd and placement.
"""

from ecompute.fleet.fleet import Fleet, FleetHost, FleetSettings
from ecompute.fleet.machine import Conduct

__all__ = ["Fleet", "FleetHost", "FleetSettings", "Conduct"]
