"""Instances on a host: the plan (pure), its steps, and the lanes in which they run."""
