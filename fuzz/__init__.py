"""Fuzzing of every parser that reads bytes from outside: ``./dev fuzz``."""
