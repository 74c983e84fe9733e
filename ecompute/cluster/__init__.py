"""The shared leaf: what every process of the cluster knows. Imports nothing else of ours."""
