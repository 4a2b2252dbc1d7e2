"""The one exception a user may cause."""

import sys


class UserError(Exception):
    """Bad input: the message is one line that says what, where, what was expected and what to do. Exit code 2."""


def not_installed(package: str) -> str:
    """The line for a Python that is not the one of `venv/`."""
    return f"{package} is not installed in this Python ({sys.executable}); run ./setup.sh once, then source activate.sh"
