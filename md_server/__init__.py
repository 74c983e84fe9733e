"""The metadata service of a host: 169.254.169.254 in every network of its guests. See `md_server.server`."""
