"""The functional core of nftables mode: the desired table, and the difference to the kernel's."""
