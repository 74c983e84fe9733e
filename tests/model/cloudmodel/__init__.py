"""A cloud in memory: etcd, placement, hosts, and the processes that use them, one step at a time.

What decides is the product's own (`plan`, `finish`, `leaks`, `judge`, `report`); the rest imitates
what the product does around it, in the same order. A process is a generator: between two of its
steps it may be paused for any time, killed, or overtaken by anybody. `docs/adr/0002` says what the
model takes for granted.
"""
