"""A process that has imported what the daemon imports and opened what it opens, and does nothing else."""

import sys
from pathlib import Path

import ecompute.daemon  # noqa: F401 - for its size
from ecompute.cluster import config
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store
from ecompute.hypervisor.connection import LibvirtHypervisor
from ecompute.network.links import NetlinkLinks

settings = config.load(Path(sys.argv[1]))
store = Store(settings.etcd)
store.status()
placement = Placement(settings.placement)
placement.check()
hypervisor = LibvirtHypervisor(settings.libvirt_uri, "bare")
hypervisor.list()
NetlinkLinks().ours()
print("ready", flush=True)
sys.stdin.read()
hypervisor.close()
store.close()
