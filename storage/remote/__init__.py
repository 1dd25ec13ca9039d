"""The remote of a home: what one home sends there, another receives; two homes cannot both move a name."""

from bardflow.storage.remote.contents import Counted, Remote, remote_of
from bardflow.storage.remote.object_storage import SCHEMES, RemoteDamaged, RemoteError, RemoteUnreachable

__all__ = ["SCHEMES", "Counted", "Remote", "RemoteDamaged", "RemoteError", "RemoteUnreachable", "remote_of"]
