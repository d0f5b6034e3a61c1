"""The helper process inside a namespace: echo servers and clients, ordered over a socket.

It is started without site packages and imports little, so that it is up within milliseconds;
``testbed.traffic`` is its other end.
"""
