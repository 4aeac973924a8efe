"""The error of bad input: one line that says what was wrong and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: a file, a target, a weight file, an option.

    The message is one line: it names the thing, says what is wrong with it, and the remedy. The command line prints
    it, or ``command`` where the remedy is another one there, and exits with code 2.
    """

    def __init__(self, message: str = "", *, command: str | None = None) -> None:
        super().__init__(message)
        self.command = message if command is None else command
