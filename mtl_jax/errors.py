"""Exceptions for mistakes of the user."""


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one sentence that says what is wrong, where, and what to do. Commands
    print it without a traceback and exit with code 1. Every other exception is a bug.
    """


class NotFinite(UserError):
    """A loss, parameter or output is not finite, and the run cannot continue."""
