"""Netlink: sockets, conversations, event listeners, and the messages of each protocol (``core``)."""
