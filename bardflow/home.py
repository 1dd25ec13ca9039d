"""Locations of a project (its folder, home and server), and environment variables for its processes."""

import ctypes
import fcntl
import os
import re
import time
from pathlib import Path

from bardflow.errors import BardError

PROJECT_FILE = "prefect.yaml"
MAKE_ONE = "run `bard init NAME` and `cd NAME`, or name a project with BARDFLOW_PROJECT=/path/to/it"
STARTING_SECONDS = 60  # a server on a fresh home was healthy after 8-22 s on 2 busy cores
LOOPBACK = "127.0.0.1,localhost,::1"
# The days for which Prefect's database keeps flow runs with their task runs and logs. Its own default is for ever.
HISTORY_DAYS = 30
# Environment variable with the address at which `bard up` serves the reports.
REPORTS_SITE = "BARDFLOW_REPORTS"
# Parameters of mallopt(3), with numbers from glibc's malloc.h.
MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}


class HomeError(BardError):
    """There is no project folder, or the project's server does not answer."""


def project_folder() -> Path:
    """Return the project's folder, which has `prefect.yaml`, `corpora/` and `recipes/`.

    This is BARDFLOW_PROJECT if it is set, else the nearest project at or above the working directory, else the checkout
    that the program runs from. (`bard init` creates a project.)

    Raises:
        HomeError: no project was found, or BARDFLOW_PROJECT is not one.
    """
    named = os.environ.get("BARDFLOW_PROJECT")
    if named:
        folder = Path(named).expanduser().resolve()
        if not (folder / PROJECT_FILE).is_file():
            raise HomeError(f"BARDFLOW_PROJECT names {folder}, but there is no {PROJECT_FILE} in it: {MAKE_ONE}")
        return folder
    here, checkout = Path.cwd(), Path(__file__).resolve().parent.parent
    for folder in (here, *here.parents):
        if is_project(folder):
            return folder
    if is_project(checkout):
        return checkout
    raise HomeError(
        f"Neither {here} nor a folder above it is a bardflow project (no {PROJECT_FILE} of one): {MAKE_ONE}"
    )


def is_project(folder: Path) -> bool:
    """Return whether the folder has a bardflow `prefect.yaml`; other Prefect projects also have a file of this name."""
    try:
        return re.search("^name: bardflow$", (folder / PROJECT_FILE).read_text("utf-8"), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False


def home() -> Path:
    """Return the folder of all stored data: BARDFLOW_HOME, else `.bardflow` in the project folder."""
    named = os.environ.get("BARDFLOW_HOME")
    return Path(named).expanduser().resolve() if named else project_folder() / ".bardflow"


def remote_address() -> tuple[str | None, str | None, bool]:
    """Return the address of the home's remote (BARDFLOW_REMOTE), its server, and whether that may be an http:// one.

    The server is None if it is the storage's own. The library reads it and the credentials from the environment, too.
    """
    address = os.environ.get("BARDFLOW_REMOTE") or None
    prefix = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}.get((address or "").partition(":")[0], "")
    named = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if prefix == "AWS" else ()
    endpoint = next((os.environ[name] for name in named if os.environ.get(name)), None)
    shown = None if endpoint is None else re.sub(r"(?<=//)[^/@]*@|[?#].*", "", endpoint)
    return address, shown, os.environ.get(f"{prefix}_ALLOW_HTTP", "").lower() in ("1", "true")


def password() -> str | None:
    """Return `NAME:PASSWORD`, which Prefect's server and the sites ask for, or None if none is set.

    This is Prefect's own setting: PREFECT_SERVER_API_AUTH_STRING, or PREFECT_API_AUTH_STRING, which clients use.
    """
    return os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or os.environ.get("PREFECT_API_AUTH_STRING") or None


def prefect_environment() -> dict[str, str]:
    """Return Prefect's environment variables for all our processes; set them before `import prefect`.

    This creates PREFECT_HOME. PREFECT_API_URL is not included.
    """
    prefect = home() / "prefect"
    # Prefect creates its folder but not the parent. Without the parent, the server retries forever.
    prefect.mkdir(parents=True, exist_ok=True)
    proxied_not = [text for text in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), LOOPBACK) if text]
    # The server asks for the password, and the worker, the flows and the commands give it.
    secret = password()
    auth = {"PREFECT_SERVER_API_AUTH_STRING": secret, "PREFECT_API_AUTH_STRING": secret} if secret else {}
    return (
        computing_environment()
        | auth
        | {
            # `bard up` and temporary servers use one database and one result store, so they share cached results.
            "PREFECT_HOME": str(prefect),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(prefect / "results"),
            "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
            # The default is pickle, which can run code when it is loaded.
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
            # With plugins, `import prefect` in an event loop prints a traceback; ours is for typed commands only.
            "PREFECT_PLUGINS_ENABLED": "false",
            # Prefect stores the lines of this logger among the logs of a run.
            "PREFECT_LOGGING_EXTRA_LOGGERS": "bardflow",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            # Prefect's clients use HTTP_PROXY even for the server on this machine.
            "NO_PROXY": ",".join(proxied_not),
            "no_proxy": ",".join(proxied_not),
        }
    )


def computing_environment() -> dict[str, str]:
    """Return variables for torch's threads and glibc's memory that the user did not set; set them before Python starts.

    By default, GNU OpenMP's threads spin while they wait. Two training runs at once on 2 cores took 1,978 ms a step,
    and 105 ms with sleeping threads. But sleeping costs 70 us, as much as many operations of a small model.

    glibc returns freed memory at the top of the heap and allocates it again, with a page fault for every 4 KiB: 4,479
    in a step of recipe `sprint`, and 9 with these thresholds (benchmarks/LOG.md). Blocks over 32 MiB are returned.
    """
    given = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "10000"}
    given |= {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
    return {name: value for name, value in given.items() if name not in os.environ}


def set_up_computing() -> None:
    """Apply `computing_environment` to this process before torch is imported; glibc is set up with `mallopt`."""
    settings = computing_environment()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and macOS lack it and ignore these variables
    for name, parameter in MALLOPT.items():
        if mallopt is not None and name in settings:
            mallopt(parameter, int(settings[name]))
    os.environ.update(settings)


def up_lock() -> Path:
    """Return the path of the file that a running `bard up` locks with flock; it contains its server's API address."""
    return home() / "up.lock"


def held(lock: Path) -> bool:
    """Return whether a process holds the lock. The kernel releases it when the process ends in any way."""
    if not lock.exists():
        return False
    with lock.open("rb") as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def healthy(url: str) -> bool:
    """Return whether a Prefect server answers at `url`, the address that ends in `/api`."""
    import httpx  # takes 80 ms to import, and most commands ask no server

    try:
        return httpx.get(f"{url}/health", timeout=2, trust_env=False).text == "true"
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def server_url() -> str | None:
    """Return the API address of this project's `bard up`, or None if none runs.

    This waits up to 60 s while `bard up` starts or stops, because a second server on the same database would fail with
    "database is locked".

    Raises:
        HomeError: `bard up` runs, but its server does not answer.
    """
    deadline = time.monotonic() + STARTING_SECONDS
    while held(up_lock()):
        url = up_lock().read_text(encoding="utf-8")
        if url and healthy(url):
            return url
        if time.monotonic() > deadline:
            raise HomeError(
                f"`bard up` runs in this project, but its server has not answered for {STARTING_SECONDS} s. "
                f"Its log is {home() / 'logs' / 'server.log'}; stop `bard up` with Ctrl-C and start it again."
            )
        time.sleep(0.25)
    return None
