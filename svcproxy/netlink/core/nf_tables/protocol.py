"""Constants of nf_tables' netlink protocol that several modules use.

They are from ``linux/netfilter/nf_tables.h`` and ``linux/netfilter/nfnetlink.h``, and part of the
kernel's stable interface to user space.
"""

from struct import Struct

from svcproxy.netlink.core.messages import HEADER

FAMILY_HEADER = Struct("!BBH")
"""Family, version, resource id (``struct nfgenmsg``)."""
HEADERS = HEADER.size + FAMILY_HEADER.size

SUBSYSTEM = 10
"""NFNL_SUBSYS_NFTABLES."""
EVENT_GROUP = 7
"""NFNLGRP_NFTABLES."""

BATCH_BEGIN, BATCH_END = 0x10, 0x11

NEW_TABLE, GET_TABLE, DELETE_TABLE = 0, 1, 2
NEW_CHAIN, GET_CHAIN, DELETE_CHAIN = 3, 4, 5
NEW_RULE, GET_RULE, DELETE_RULE = 6, 7, 8
NEW_SET, GET_SET, DELETE_SET = 9, 10, 11
NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = 12, 13, 14
NEW_GENERATION, GET_GENERATION = 15, 16

FLAG_APPEND = 0x800

TABLE_OF = 1
"""The attribute with the table's name, in all messages about tables and their objects."""
NAME_OF = 2
"""The attribute with the set's name, in messages about sets and their elements."""
LIST_ELEMENT = 1

GENERATION_ID, GENERATION_PROCESS, GENERATION_NAME = 1, 2, 3


def message_type(kind: int) -> int:
    """Return the netlink message type of a message kind of nf_tables, such as ``NEW_RULE``."""
    return SUBSYSTEM << 8 | kind
