"""What keeps placement and etcd honest: run by daemons under a lead, called by tools that wait."""
