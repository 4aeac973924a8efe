"""The error of bad input: one line that says what was wrong and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: a file, a target, a weight file, an option.

    The message is one line: it names the thing, says what is wrong with it, and the remedy. The command line prints
    it as it is and exits with code 2.
    """
