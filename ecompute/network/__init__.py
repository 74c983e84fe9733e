"""Networks on a host: wanted and found go in, changes come out, netlink and nft apply them."""
