"""Texts and codes of the commands. Pure."""
