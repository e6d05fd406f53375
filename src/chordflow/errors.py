"""The one error that a user is meant to see."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the field, the value it had and what to do. The command line
    prints it without a traceback and exits with code 2.
    """
