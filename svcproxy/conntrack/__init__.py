"""Connection tracking: delete the UDP and SCTP flows that a change left on the wrong endpoint.

``stale`` decides which flows those are, ``netlink`` turns requests and answers into bytes and
back (both pure), ``table`` owns the sockets, ``cleaner`` joins them for the sync loop.
"""
