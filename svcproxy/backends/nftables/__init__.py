"""Services as map elements behind a few shared nftables chains, changed over netlink.

``render`` turns one finished Service port into elements, ``tables`` and ``tiers`` hold the chains
and sets that all of them share, ``plan`` computes differences, ``transaction`` and ``dump`` turn
them into netlink messages and back (all pure); ``backend``, ``connection`` and ``watcher`` touch
the kernel. ``docs/adr/0005`` tells why the table looks as it does.
"""
