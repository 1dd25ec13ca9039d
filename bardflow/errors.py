"""The root of the exception tree. Every room draws its own branch from here, so the command line catches one class."""


class BardError(Exception):
    """Something the reader can mend: the message says what was given, what was expected and what to do next."""
