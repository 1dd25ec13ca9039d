"""What several test files need: a Prefect server, a project folder for each test, one thread, and the real texts."""

import gc
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import certifi
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, register_random, settings

if TYPE_CHECKING:
    from bardflow.storage.store import Store
    from tests.site import Site

# Set before anything imports Prefect, as `bard` does for its own processes.
os.environ.update(
    DO_NOT_TRACK="1",
    PREFECT_PLUGINS_ENABLED="false",
    PREFECT_RESULTS_PERSIST_BY_DEFAULT="true",
    PREFECT_RESULTS_DEFAULT_SERIALIZER="json",
    PREFECT_LOGGING_TO_API_ENABLED="false",
    PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL",
    # The tests' models are so small that a second thread only waits, and on a busy machine it waits long.
    OMP_NUM_THREADS="1",
    # Tests serve on loopback, which is private.
    BARDFLOW_ALLOW_PRIVATE_ADDRESSES="1",
)

# A shell starts background jobs with SIGINT ignored, which children inherit; but Prefect's worker ends by SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that is busy with other things makes no test fail: an example may take as long as it takes.
settings.register_profile(
    "bardflow", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("bardflow")


class TorchRandom:
    """torch's global random numbers, which Hypothesis seeds before each example."""

    def seed(self, number: int) -> None:
        """Begin a sequence of numbers."""
        torch.manual_seed(number)

    def getstate(self) -> torch.Tensor:
        """Return where the sequence is."""
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        """Go on from there."""
        torch.set_rng_state(state)


TORCH_RANDOM = TorchRandom()  # Hypothesis keeps only a weak reference
register_random(TORCH_RANDOM)  # it takes anything with these methods


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Give a test the same random numbers whichever tests ran before it in this process."""
    torch.manual_seed(0)


pytest_plugins = ["tests.project_up"]

CHECKOUT = Path(__file__).resolve().parent.parent

# The longest files first, so that no process is left with one of them at the end; the second needs no server, which the
# first waits for.
LONG = (
    "test_cli.py", "test_training.py", "test_train_gpt.py", "test_browser.py", "test_experiments.py",
    "test_champions.py", "test_docs.py", "test_base.py", "test_pages.py", "test_mixture.py",
    "test_house.py", "test_verify.py",
)  # fmt: skip

from bardflow.model.networks import GPTSpec  # noqa: E402
from bardflow.tasks.recipes import load_recipe  # noqa: E402

# The recipes of this checkout, by name.
RECIPES = {path.stem: load_recipe(path.stem).recipe for path in sorted((CHECKOUT / "recipes").glob("*.toml"))}

ARCHITECTURES = get_args(GPTSpec.model_fields["architecture"].annotation)

# A small network of each architecture.
SMALL_NETWORKS = [
    GPTSpec(layers=2, heads=2, width=16, context=8, dropout=0.4),
    GPTSpec(architecture="classic", layers=2, heads=2, width=16, context=8, activation="gelu", dropout=0.4),
    GPTSpec(
        architecture="llama",
        layers=2,
        heads=4,
        width=16,
        context=8,
        key_value_heads=2,
        head_width=6,
        query_key_norm=True,
        activation="silu",
        dropout=0.4,
    ),
    GPTSpec(architecture="lfm2", layers=3, heads=2, width=16, context=8, activation="silu", dropout=0.4),
]

SMALL_CORPUS = """
title = "A test's own text"
language = "en"
licence = "CC0-1.0"

[source]
path = "texts/own.txt"
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in `faults/`, and order all by how long their file takes."""
    for item in items:
        if item.path.parent.name == "faults":
            item.add_marker("faults")
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over all that was imported, at which it would look again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a real Prefect server with a database of its own, one for all processes of the tests.

    It keeps flow runs, but no events and task runs: recording these takes two thirds of a server's CPU time, and only
    the tests of `bard up` look at them, on servers of their own.
    """
    shared = shared_folder(tmp_path_factory)
    address, starting = shared / "server.url", FileLock(shared / "server.lock")
    using = FileLock(shared / f"server-used-by-{os.getpid()}.lock")
    with starting:
        own = None if address.exists() else flow_run_server(shared / "server")
        if own is not None:
            address.write_text(own.__enter__())
        using.acquire()
    yield address.read_text()
    using.release()
    if own is not None:
        with starting:  # from here on a process starts another one
            address.unlink()
        for user in shared.glob("server-used-by-*.lock"):
            with FileLock(user):
                pass
        own.__exit__(None, None, None)


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the tests have."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def flow_run_server(home: Path) -> Iterator[str]:
    """A server for flow runs alone."""
    from bardflow.commands.up import server

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARDFLOW_HOME", str(home))
        for service in ("EVENT_PERSISTER", "TASK_RUN_RECORDER", "TRIGGERS"):
            patch.setenv(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
        serving = server()
        url = serving.__enter__()
    yield url
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARDFLOW_HOME", str(home))
        serving.__exit__(None, None, None)


@pytest.fixture(scope="session")
def prefect_server(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the flows of this process use the server.

    Without the heartbeat, which costs each flow a second, and with one certificate: each client reads all of them. No
    events are sent, because the server does not keep them.
    """
    from prefect.events.clients import NullEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.settings import (
        PREFECT_API_SSL_CERT_FILE,
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    changed = {
        PREFECT_API_URL: server_url,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        PREFECT_API_SSL_CERT_FILE: one_certificate(tmp_path_factory.mktemp("certificates")),
    }
    with temporary_settings(changed):
        EventsWorker.set_client_override(NullEventsClient)
        yield
        EventsWorker.set_client_override(None)


def one_certificate(folder: Path) -> str:
    """The path of a file with one certificate: each of Prefect's clients reads all of them."""
    certificate, end, _ = certifi.contents().partition("-----END CERTIFICATE-----\n")
    file = folder / "one.pem"
    file.write_text(certificate + end)
    return str(file)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with one small corpus, `own`, and a home of its own: what BARDFLOW_PROJECT and _HOME name."""
    folder = make_project(tmp_path / "project")
    monkeypatch.setenv("BARDFLOW_PROJECT", str(folder))
    monkeypatch.setenv("BARDFLOW_HOME", str(folder / "home"))
    monkeypatch.delenv("CORPORA_MIRROR", raising=False)
    return folder


@pytest.fixture
def answers(project: Path, prefect_server: None) -> Iterator[None]:
    """Prefect's answers in this project's own home."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: project / "home" / "results"}):
        yield


@pytest.fixture(scope="session")
def quick_home(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    """A home in which the quick training has run on `own`, and a better one of 40 steps."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    folder = make_project(tmp_path_factory.mktemp("quick") / "project")
    home = folder / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARDFLOW_PROJECT", str(folder))
        patch.setenv("BARDFLOW_HOME", str(home))
        patch.delenv("CORPORA_MIRROR", raising=False)
        with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: home / "results"}):
            from tests.quick import run

            run()
            run(steps=40, leg_steps=40)
    return home


@pytest.fixture
def quickly_answered(project: Path, answers: None, quick_home: Path) -> None:
    """The project's home has the artifacts and Prefect's answers of the two trainings, but no names yet."""
    for part in ("objects", "results"):
        shutil.copytree(quick_home / part, project / "home" / part)


@pytest.fixture
def store(tmp_path: Path) -> "Store":
    """An empty store."""
    from bardflow.storage.store import Store

    return Store(tmp_path / "home")


@pytest.fixture
def site() -> Iterator["Site"]:
    """A server that answers as it is told."""
    from tests.site import Site

    site = Site()
    yield site
    site.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bits are promised at a fixed number of threads; two of them spin for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mirror() -> str:
    """Folder or address of the real texts: CORPORA_MIRROR, else `shared/corpora` beside the checkout."""
    return os.environ.get("CORPORA_MIRROR") or str(CHECKOUT.parent / "shared" / "corpora")


@pytest.fixture(scope="session")
def real_text(mirror: str) -> Callable[[str, str], str]:
    """Reads a real text from the mirror folder, by its corpus and file name; the test is skipped where it is not."""

    def read(corpus: str, file: str) -> str:
        path = Path(mirror, corpus, file)
        if not path.is_file():
            pytest.skip(f"needs {corpus}/{file} in the folder that CORPORA_MIRROR names")
        return path.read_bytes().decode()

    return read


@contextmanager
def served_by(home: Path, url: str) -> Iterator[None]:
    """Let the commands of a home use a server, as beside a `bard up`: each starts sooner without one of its own."""
    from bardflow.commands.processes import holding

    with holding(home / "up.lock") as lock:
        lock.write(url)
        lock.flush()
        yield


def make_project(folder: Path) -> Path:
    """A project folder with one small corpus, `own`."""
    (folder / "corpora").mkdir(parents=True)
    (folder / "texts").mkdir()
    shutil.copy(CHECKOUT / "prefect.yaml", folder)
    (folder / "corpora" / "own.toml").write_text(SMALL_CORPUS)
    (folder / "texts" / "own.txt").write_text(own_text())
    return folder


def own_text() -> str:
    """About 20,000 characters with something to learn in them."""
    return "".join(f"Verse {n}: {'the old bard sings of flow ' * (1 + n % 3)}and {n * n} more.\n" for n in range(260))


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """An ASGI application behind a real server on loopback; yields its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
