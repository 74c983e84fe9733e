"""The host daemon, and what every process of the cluster shares (`ecompute.cluster`)."""

__version__ = "0.1.0"
