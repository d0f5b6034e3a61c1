"""Opt-in counters of connections and refusals per Service, in an nf_tables table of their own."""
