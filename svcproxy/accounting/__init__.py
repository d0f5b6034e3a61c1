"""Connections and refusals per Service.

``connections`` reads connection tracking when it is asked, in every mode and at no cost otherwise.
``keeper`` maintains an nf_tables table of its own that counts in the kernel, if a flag asks for it;
``counters`` reads that table, for ``svcproxy top`` and for the metrics of chosen Services.
"""
