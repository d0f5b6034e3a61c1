"""The functional core of nftables mode: what the table must hold, and the difference to what it holds."""
