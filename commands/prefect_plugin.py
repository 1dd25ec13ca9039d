"""A Prefect plugin: it turns `prefect deployment run train-gpt` into `prefect deployment run train-gpt/default`.

Prefect itself rejects a name without a slash before it asks the server. Its plugin system calls `setup_environment` on
`import prefect`, before the command line is read, so the name can be completed. No other command is changed.
"""

import sys
from pathlib import PurePath

from prefect.plugins import HookContext, register_hook

GLOBAL_OPTIONS_WITH_VALUE = frozenset({"--profile"})
GLOBAL_FLAGS = frozenset({"--prompt", "--no-prompt"})
RUN_OPTIONS_WITH_VALUE = GLOBAL_OPTIONS_WITH_VALUE | {
    *("--id", "--job-variable", "-jv", "--param", "-p", "--params", "--start-in", "--start-at"),
    *("--tag", "--watch-interval", "--watch-timeout", "--flow-run-name"),
}
RUN_FLAGS = GLOBAL_FLAGS | {"--watch", "--no-watch"}


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Complete a flow name without a slash on the command line of `prefect`; change no other process."""
    if is_prefect(sys.argv, sys.orig_argv):
        sys.argv[:] = rewrite(sys.argv)


def is_prefect(argv: list[str], orig_argv: list[str]) -> bool:
    """Return whether this process is the `prefect` command, called by its name or as `python -m prefect`."""
    if not argv:
        return False
    program = PurePath(argv[0])
    if program.stem == "prefect" and program.suffix in ("", ".exe"):
        return True
    # While `python -m prefect` imports the package, argv[0] is still "-m"; only orig_argv has the module's name.
    module_at = len(orig_argv) - len(argv)
    return argv[0] == "-m" and module_at > 0 and orig_argv[module_at] in ("prefect", "-mprefect")


def rewrite(argv: list[str]) -> list[str]:
    """Return `argv` with the name after `deployment run` completed to `<name>/default`, if it has no slash.

    If there is an unknown option, `argv` is not changed, because the option's value could be mistaken for the name.
    """
    command = next_word(argv, 1, GLOBAL_OPTIONS_WITH_VALUE | {"-p"}, GLOBAL_FLAGS)
    if (
        command is None
        or argv[command] not in ("deployment", "deployments")
        or argv[command + 1 : command + 2] != ["run"]
    ):
        return argv
    name = next_word(argv, command + 2, RUN_OPTIONS_WITH_VALUE, RUN_FLAGS)
    if name is None or not argv[name] or "/" in argv[name]:
        return argv
    return [*argv[:name], f"{argv[name]}/default", *argv[name + 1 :]]


def next_word(argv: list[str], start: int, with_value: frozenset[str], flags: frozenset[str]) -> int | None:
    """Return the index of the first word from `start` that is neither an option nor an option's value, or None."""
    at = start
    while at < len(argv):
        word = argv[at]
        if word == "--":
            return at + 1 if at + 1 < len(argv) else None
        if not word.startswith("-"):
            return at
        if word in with_value:
            at += 2
        elif word in flags or word.partition("=")[0] in with_value:
            at += 1
        else:
            return None
    return None
