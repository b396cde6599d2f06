"""The exception that stands for a mistake of the user."""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one sentence that says what is wrong, where, and what to do. Commands
    print it without a traceback and exit with code 1; every other exception is a bug.
    """


class NotFinite(UserError):
    """A loss, parameter or output that is not finite; the run can come to no more."""
