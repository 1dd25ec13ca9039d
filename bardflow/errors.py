"""The base class of all errors for users, which the command line catches."""


class BardError(Exception):
    """An error that the user can correct: the message says what was given, what was expected and what to do next."""
