"""The one exception a user may cause."""


class UserError(Exception):
    """Bad input: the message is one line that says what, where, what was expected and what to do. Exit code 2."""
