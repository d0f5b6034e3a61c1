"""nf_tables over netlink: sets, maps, chains and rules as values, and the messages that carry them."""
