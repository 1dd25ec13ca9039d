"""The command line: `bard` and what it starts."""
