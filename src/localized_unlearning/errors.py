"""The one exception a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A fault in the input, told in one sentence that names the thing and the remedy.

    The command line prints it without a traceback and exits with status 1.
    """
