"""`bard init`: create a project folder with corpora, recipes and schedules."""

import shutil
from importlib import resources
from pathlib import Path

from bardflow.errors import BardError

# Files to copy into a project; the package has them in a checkout and in a wheel.
COPIED = ("corpora", "recipes", "prefect.yaml")
WRITTEN = {
    ".gitignore": ".bardflow/\n.venv/\n__pycache__/\n",
    # `prefect` reads this file in a project, as it reads pyproject.toml in the checkout.
    "prefect.toml": """\
[api]
url = "http://127.0.0.1:4200/api"

[plugins]
enabled = true

[server]
analytics_enabled = false

[server.ui]
show_promotional_content = false
""",
}


class ProjectError(BardError):
    """The folder cannot become a project."""


def create_project(folder: Path) -> list[str]:
    """Create a project in the folder and return the names of its files.

    Raises:
        ProjectError: a file with one of these names exists; nothing was written.
    """
    taken = [name for name in (*COPIED, *WRITTEN) if (folder / name).exists()]
    if taken:
        raise ProjectError(
            f"{folder} has {', '.join(taken)} already, and nothing is overwritten; give a new or empty folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            with resources.as_file(resources.files("bardflow") / name) as source:
                if source.is_dir():
                    (folder / name).mkdir()
                    for file in sorted(source.glob("*.toml")):
                        shutil.copyfile(file, folder / name / file.name)
                else:
                    shutil.copyfile(source, folder / name)
        for name, text in WRITTEN.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ProjectError(f"{folder} cannot be made a project: {error.strerror or error}") from error
    return [*COPIED, *WRITTEN]
