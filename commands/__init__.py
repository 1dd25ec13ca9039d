"""The command line `bard`, and the processes that it starts."""
