"""Netlink, whatever it carries: attributes, message headers, conversations over a socket."""
