"""nf_tables over netlink: sets, chains, rules and elements as values, and their messages."""
