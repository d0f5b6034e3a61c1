"""The commands of ``svcproxy`` besides the daemon: ``svcproxy show``, ``svcproxy trace`` and others.

Each command is a module here and a line in ``registry.py``. Commands run in a process of their own.
They ask the daemon for what it has over the admin socket, read the kernel themselves, and compute
the rest (ADR 18). They write nothing.
"""
