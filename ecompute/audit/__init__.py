"""The host's own audit: what etcd assigns, what it remembers and what is here, compared."""
