"""The embedded cloud: everything that a host and a cluster need, started on one machine."""
