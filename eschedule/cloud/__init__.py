"""What can be asked of the cloud: one module a noun; the command line and the API both call it."""
