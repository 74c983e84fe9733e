"""Asking the cloud: the scheduler, what can be asked, and the command line."""
