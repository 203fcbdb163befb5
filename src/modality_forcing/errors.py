"""Errors that are the user's to fix: one clear line, no traceback, exit code 2."""


class UserError(ValueError):
    """Bad input. The message names the input, what was wrong and what would be right.

    The command line prints the message as one line and exits with code 2; in Python it is an
    ordinary ``ValueError``.
    """


class TrainingError(RuntimeError):
    """A training run cannot go on, whatever its settings: the message says why and what is safe."""


class OutOfMemoryError(RuntimeError):
    """The device ran out of memory. The message says which options to lower."""
