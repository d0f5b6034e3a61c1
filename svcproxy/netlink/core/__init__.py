"""Netlink messages as values: building and parsing them, without sockets."""
