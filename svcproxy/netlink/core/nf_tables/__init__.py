"""nf_tables over netlink: sets, chains, rules and elements as values, encoded to and from messages."""
