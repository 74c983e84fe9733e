"""Not a test: run by one, as a program, with cloud-init on its path. Prints as JSON what its NoCloud source read.

Usage: read_nocloud_with_cloud_init.py DIRECTORY, where the drive's files lie in DIRECTORY/seed/nocloud.
"""

import json
import sys

from cloudinit import helpers
from cloudinit.net import eni, network_state
from cloudinit.sources import DataSourceNoCloud

directory = sys.argv[1]
paths = helpers.Paths({"cloud_dir": directory, "run_dir": directory})
source = DataSourceNoCloud.DataSourceNoCloud({"datasource": {"NoCloud": {"fs_label": None}}}, None, paths)
is_read = source._get_data()
state = network_state.parse_net_config_data(source.network_config)

print(
    json.dumps(
        {
            "is_read": is_read,
            "instance_id": source.get_instance_id(),
            "hostname": source.get_hostname().hostname,
            "keys": source.get_public_ssh_keys(),
            "userdata": list(source.userdata_raw),
            "interfaces": list(state.iter_interfaces()),
            "eni": eni.network_state_to_eni(state),
        },
        default=str,
    )
)
