"""The command line: one module a noun; loads click and nothing heavy until a command runs."""
