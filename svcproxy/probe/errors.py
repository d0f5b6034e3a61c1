"""Errors of the probe."""


class NotSentError(Exception):
    """The probe cannot be sent; the message is one line with the reason and the remedy."""
