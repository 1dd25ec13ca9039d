"""A real PostgreSQL on loopback in a temporary folder, as an unprivileged user: `python -m tests.postgres` runs one."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.project_up import free_port

USER, PASSWORD, NAME = "prefect", "a-password-of-a-test", "prefect"


def programs() -> Path | None:
    """The folder of PostgreSQL's programs; None where it is not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Serve an empty database and yield its address for SQLAlchemy with asyncpg."""
    # PostgreSQL refuses to run as root; a container's tests often do.
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        data = f"{folder}/data"

        def run(*command: str, check: bool = True) -> None:
            subprocess.run(command, user=user, cwd=folder, check=check, capture_output=True, env=environment)

        environment = {"PATH": f"{programs}:/usr/bin:/bin", "PGPASSWORD": PASSWORD, "LC_ALL": "C"}
        secret = Path(folder) / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        run("initdb", "-D", data, "-U", USER, "--pwfile", str(secret), "-A", "scram-sha-256", "--no-sync", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-o", options, "-w", "-t", "600", "-l", f"{folder}/log", "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", USER, NAME)
            yield f"postgresql+asyncpg://{USER}:{PASSWORD}@127.0.0.1:{port}/{NAME}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop", check=False)


if __name__ == "__main__":
    here = programs()
    assert here is not None, "PostgreSQL is not installed"
    with postgres(here) as address:
        print(f"PREFECT_API_DATABASE_CONNECTION_URL={address}", flush=True)
        input()
