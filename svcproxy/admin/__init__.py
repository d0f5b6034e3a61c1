"""The admin socket: what the daemon knows, for the commands and the page, over a Unix socket.

``server.py`` is the daemon's side, ``client.py`` that of the commands, ``core/protocol.py`` what they
exchange. The daemon sends what it has and computes nothing for the asking process (ADR 18).
"""
