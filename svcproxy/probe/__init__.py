"""A real probe of a Service: one packet or handshake, what came back, and what the kernel did with it.

Everything that the probe needs is owned by file descriptors: sockets, a temporary network namespace
with its veth pair, and an nf_tables table with an owner. So it ends with the process, however that
ends. What packets leave in the kernel (a connection tracking entry, entries of session affinity) is
removed by ``guardian``.
"""
