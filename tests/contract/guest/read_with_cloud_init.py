"""Not a test: run by one, as a program, with cloud-init on its path. Prints as JSON what cloud-init read.

A process of its own, since cloud-init is not ours: its warnings, its loggers and its caches stay in it.

Usage: read_with_cloud_init.py DIRECTORY MAC=NAME...
"""

import json
import sys

from cloudinit.net import eni, network_state
from cloudinit.sources import DataSourceConfigDrive
from cloudinit.sources.helpers import openstack

directory = sys.argv[1]
macs = dict(argument.split("=") for argument in sys.argv[2:])

reader = openstack.ConfigDriveReader(directory)
version = reader._find_working_version()
read = DataSourceConfigDrive.read_config_drive(directory)
network = openstack.convert_net_json(read["networkdata"], known_macs=macs)
state = network_state.parse_net_config_data(network)

print(
    json.dumps(
        {
            "version": version,
            "metadata": read["metadata"],
            "userdata": list(userdata) if isinstance(userdata := read.get("userdata"), bytes) else userdata,
            "vendordata": read["vendordata"],
            "network": network,
            "eni": eni.network_state_to_eni(state),
        },
        default=str,
    )
)
