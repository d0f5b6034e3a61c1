"""Explains rules without a kernel: prints them, and traces packets through them.

Everything is computed from values: rules that svcproxy rendered, or rules that were read from a
kernel. ``core.trace.trace`` follows a packet, ``core.nft_print`` prints a table as ``nft`` does,
and ``core.ipvs_print`` prints virtual servers and ipsets as ``ipvsadm`` and ``ipset`` do.
"""
