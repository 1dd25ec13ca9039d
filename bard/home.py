"""Where things are: the project's folder, its home for data, its server, and the environment our processes run in."""

import fcntl
import os
import time
from pathlib import Path

import httpx
import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from bard.errors import BardError

STARTING_SECONDS = 60  # a server on a fresh home was healthy after 8-22 s on 2 busy cores
LOOPBACK = "127.0.0.1,localhost,::1"


class HomeError(BardError):
    """The project's folder, or the server that serves it, is not as it should be."""


class ServerRecord(BaseModel):
    """What `bard up` writes down about its server: `<home>/up.json`.

    `created` is the process's start in seconds since 1970, which tells it from a later process of the same number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    pid: int
    created: float


def project_folder() -> Path:
    """The checkout: the folder that holds `prefect.yaml`. BARDFLOW_PROJECT overrides it.

    Raises:
        HomeError: there is no `prefect.yaml` in it.
    """
    named = os.environ.get("BARDFLOW_PROJECT")
    folder = Path(named).expanduser().resolve() if named else Path(__file__).resolve().parent.parent
    if not (folder / "prefect.yaml").is_file():
        whence = "BARDFLOW_PROJECT names it" if named else "the bard package lies in it"
        raise HomeError(
            f"No prefect.yaml in {folder} ({whence}). The project's folder is the checkout that holds prefect.yaml: "
            "install from a checkout (`make train` does), or name it with BARDFLOW_PROJECT=/path/to/checkout."
        )
    return folder


def home() -> Path:
    """The folder for everything the project keeps: BARDFLOW_HOME, else `.bardflow` in the project's folder."""
    named = os.environ.get("BARDFLOW_HOME")
    return Path(named).expanduser().resolve() if named else project_folder() / ".bardflow"


def prefect_environment() -> dict[str, str]:
    """The environment variables that every process of ours gives Prefect; set them before `import prefect`.

    Makes PREFECT_HOME. The server's address is not among the variables: add PREFECT_API_URL (`bard.up.server`).
    """
    prefect = home() / "prefect"
    # Prefect makes its own folder but not the one above it, and a server without its folder retries in vain.
    prefect.mkdir(parents=True, exist_ok=True)
    proxied_not = [text for text in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), LOOPBACK) if text]
    return {
        # One database and one result store for `bard up` and for temporary servers: they share the cached answers.
        "PREFECT_HOME": str(prefect),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(prefect / "results"),
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
        # The default is pickle, which runs code when it is read.
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        # Plugins print a traceback where prefect is imported in a running loop; ours serves typed commands only.
        "PREFECT_PLUGINS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Prefect's clients obey HTTP_PROXY even for the server on this machine.
        "NO_PROXY": ",".join(proxied_not),
        "no_proxy": ",".join(proxied_not),
    }


def up_lock() -> Path:
    """The file that a running `bard up` holds with flock."""
    return home() / "up.lock"


def up_record() -> Path:
    """The file where `bard up` records its server."""
    return home() / "up.json"


def is_up() -> bool:
    """Whether some process holds the lock of this project's `bard up`."""
    if not up_lock().exists():
        return False
    with up_lock().open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def healthy(url: str) -> bool:
    """Whether a Prefect server answers at `url`, the address that ends in `/api`."""
    try:
        return httpx.get(f"{url}/health", timeout=2, trust_env=False).text == "true"
    except httpx.HTTPError:
        return False


def server_url() -> str | None:
    """The API address of this project's `bard up`, or None where none runs.

    Waits up to 60 s for one that is just starting or stopping: a second server on the same database would meet
    "database is locked".

    Raises:
        HomeError: `bard up` runs, but its server does not answer.
    """
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        record = recorded_server()
        if record is not None and healthy(record.url):
            return record.url
        if record is None and not is_up():
            return None
        if time.monotonic() > deadline:
            raise HomeError(
                f"`bard up` runs in this project, but its server has not answered for {STARTING_SECONDS} s. "
                f"Its log is {home() / 'logs' / 'server.log'}; stop `bard up` with Ctrl-C and start it again."
            )
        time.sleep(0.25)


def recorded_server() -> ServerRecord | None:
    """The server that `bard up` recorded, if that very process is alive (it may outlive a killed `bard up`)."""
    try:
        record = ServerRecord.model_validate_json(up_record().read_text(encoding="utf-8"))
        process = psutil.Process(record.pid)
        alive = process.create_time() == record.created and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, ValidationError, psutil.NoSuchProcess):
        return None
    return record if alive else None
