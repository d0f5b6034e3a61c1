"""Fault injection: the soak (``./dev soak``) and what ``tests/chaos`` (``./dev chaos``) shares with it."""
