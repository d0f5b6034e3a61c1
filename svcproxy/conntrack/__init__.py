"""Connection tracking: deletes the UDP and SCTP flows that a change left on the wrong endpoint.

``core.stale`` decides which flows are stale, ``table`` lists and deletes entries in the kernel,
``cleaner`` joins the two for the sync loop.
"""
