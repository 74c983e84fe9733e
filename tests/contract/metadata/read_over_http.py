"""Not a test: run by one, as a program in a guest's place, with cloud-init on its path.

Prints as JSON what cloud-init's sources of EC2 and of OpenStack read from the metadata service.
"""

import json
import sys

from cloudinit import helpers
from cloudinit.sources import DataSourceEc2, DataSourceOpenStack

directory = sys.argv[1]
paths = helpers.Paths({"cloud_dir": directory, "run_dir": directory})

ec2 = DataSourceEc2.DataSourceEc2({}, None, paths)
ec2._cloud_name = DataSourceEc2.CloudNames.AWS  # the one that asks for session tokens
read_by_ec2 = ec2.crawl_metadata()

openstack = DataSourceOpenStack.DataSourceOpenStack({}, None, paths)
is_there = openstack.wait_for_metadata_service()
read_by_openstack = openstack._crawl_metadata()

print(
    json.dumps(
        {
            "ec2": read_by_ec2,
            "token": bool(ec2._api_token),
            "address": ec2.metadata_address,
            "is_there": is_there,
            "openstack": read_by_openstack,
        },
        default=lambda value: value.decode() if isinstance(value, bytes) else str(value),
    )
)
