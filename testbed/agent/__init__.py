"""The helper process inside a namespace: echo servers and clients, controlled over a socket.

It starts without site packages and imports few modules, so that it is ready within milliseconds;
``testbed.traffic`` controls it.
"""
