"""Fault injection for the soak (``./dev soak``) and for ``tests/chaos`` (``./dev chaos``)."""
