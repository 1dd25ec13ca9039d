"""The artifacts of a home that are also in its remote, or only there."""

import hashlib
import logging
from collections.abc import Callable, Iterable

from bardflow.storage.checking import REDUCED
from bardflow.storage.handles import Handle, text_of
from bardflow.storage.lineage import handle_of
from bardflow.storage.manifests import MANIFEST, ORIGIN, Manifest
from bardflow.storage.remote.contents import Counted, Remote, key_of
from bardflow.storage.remote.object_storage import RemoteDamaged, RemoteError
from bardflow.storage.store import Store

LOGGER = logging.getLogger("bardflow")
Count = Callable[[int], object]


class RemoteArtifacts:
    """Sends the artifacts of a store to the remote, and receives from there what the store lacks."""

    def __init__(self, store: Store, remote: Remote) -> None:
        self.store, self.remote = store, remote

    def fetch(self, handle: Handle, progress: Count = lambda count: None) -> Counted:
        """Receive an artifact from the remote, unless it is here and intact; each file is checked before it is visible.

        Raises:
            ObjectMissing: the remote lacks it or has it damaged, or cannot be reached.
        """
        harm = self.store.checks.harm(handle)
        if harm is None:
            return Counted()
        try:
            if not self.remote.holds(handle):
                raise self.store.refused(handle, harm)
            found = self._own_record(handle) or self.remote.record(handle)
            if found is None:
                raise self.remote.damaged(handle, f"{MANIFEST} is missing")
            content, origin = found
            LOGGER.info("receiving %s from %s", handle, self.remote.address)
            with self.store.draft() as draft:
                counted = self.remote.receive(handle, Manifest.model_validate_json(content), draft.folder, progress)
                self.store.put_in_place(draft.folder, handle, content, origin)
        except RemoteError as error:
            raise self.store.refused(handle, harm, str(error)) from error
        return counted

    def _own_record(self, handle: Handle) -> tuple[bytes, bytes] | None:
        """Manifest and origin as they are in the copies, if both are intact."""
        content, origin = (self.store.copies.read(self.store.place(handle) / name) for name in (MANIFEST, ORIGIN))
        if content is None or origin is None or hashlib.sha256(content).hexdigest() != handle.digest:
            return None
        return content, origin

    def is_offered(self, handle: Handle) -> bool:
        """Whether the remote has the artifact, with all files in their sizes; then its record is in this home."""
        with self.remote.tolerated(f"looking for {handle}"):
            try:
                if not self.remote.holds(handle):
                    return False
                if not (self.store.place(handle) / MANIFEST).is_file():
                    self.take_record(handle)
                content = self.store.copies.read(self.store.place(handle) / MANIFEST)
                if content is None or hashlib.sha256(content).hexdigest() != handle.digest:
                    return False
                sizes = self.remote.sizes(handle)
                wanted = {key_of(handle, n): f.bytes for n, f in Manifest.model_validate_json(content).files.items()}
                unlisted = sorted(key for key, size in wanted.items() if sizes.get(key) != size)
                # The list of a storage may lack the newest files.
                if lacking := [key for key in unlisted if self.remote.size(key) != wanted[key]]:
                    raise self.remote.damaged(handle, f"{lacking[0]} is missing, or has another size")
                return True
            except RemoteDamaged as error:
                LOGGER.warning("%s", error)
        return False

    def is_known(self, handle: Handle) -> bool:
        """Whether the record of the artifact is in this home now, from the remote if need be."""
        with self.remote.tolerated(f"looking for {handle}"):
            try:
                return self.take_record(handle)
            except RemoteDamaged as error:
                LOGGER.warning("%s", error)
        return False

    def take_record(self, handle: Handle) -> bool:
        """Write the record of an artifact that this home lacks, from the remote; return whether it is there."""
        if (self.store.place(handle) / MANIFEST).is_file():
            return True
        if (found := self.remote.record(handle)) is None:
            return False
        with self.store.draft() as draft:
            (draft.folder / REDUCED).touch()
            self.store.put_in_place(draft.folder, handle, *found)
        return True

    def share(self, handle: Handle) -> None:
        """Send a new artifact to the remote; if that fails, it is sent before the next move of a name."""
        try:
            with self.remote.tolerated(f"sending {handle}"):
                self.remote.send(handle, self.store.place(handle), self.store.manifest(handle))
        except RemoteError as error:
            LOGGER.warning("%s was not sent: %s. `bard push` sends it", handle, error)

    def send(self, handle: Handle, *, again: bool = False, progress: Count = lambda count: None) -> Counted | None:
        """Send an artifact to the remote, unless it is there; with `again`, in any case.

        None if neither has it whole; then the remote gets at least its record, if this home has one.

        Raises:
            storage.remote.RemoteError: it cannot be sent.
        """
        if not again and self.remote.holds(handle):
            return Counted()
        if harm := self.store.checks.harm(handle, again=False):
            if harm.startswith("a record"):
                self.remote.send_record(handle, self.store.place(handle))
            return None
        manifest = self.store.manifest(handle)
        return self.remote.send(handle, self.store.place(handle), manifest, again=again, progress=progress)

    def send_all(self, handles: Iterable[Handle], progress: Count = lambda count: None) -> tuple[Counted, list[Handle]]:
        """Send artifacts and all that they were made from, inputs first; return what was sent, and what is nowhere.

        Raises:
            storage.remote.RemoteError: as `send`.
        """
        known = self.remote.writable()
        sent, nowhere, met = Counted(), list[Handle](), set[Handle]()
        stack = [(handle, False) for handle in handles]
        while stack:
            handle, ready = stack.pop()
            # The lineage of an artifact that was sent with it is not looked through again.
            whole = f"lineage/{text_of(handle)}"
            if ready:
                counted = self.send(handle, progress=progress)
                if counted is None:
                    nowhere.append(handle)
                else:
                    sent = sent.plus(*counted)
                    if not nowhere:
                        known.add(whole)
            elif handle not in met and not (known.has(whole) and self.remote.holds(handle)):
                met.add(handle)
                stack.append((handle, True))
                stack += [(handle_of(text), False) for text in self.store.inputs(handle)]
        return sent, nowhere
