"""The one exception that stands for a mistake of the user."""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one sentence that says what is wrong, where, and what to do. Scripts
    print it without a traceback and exit with code 1; every other exception is a bug.
    """
