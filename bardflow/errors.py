"""The base class of errors for users. The command line catches it and prints only the message."""


class BardError(Exception):
    """An error that the user can correct. The message says what was given, what was expected and what to do."""
