"""Checking artifacts: files are hashed and compared with the manifest, and stamps save hashing them again."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from bardflow.storage.copies import Copies
from bardflow.storage.disk import DRAFTS, file_names, read_or_none, sealed, unsealed, write_whole
from bardflow.storage.handles import Handle
from bardflow.storage.layout import STAMPS, place_of
from bardflow.storage.manifests import LAYOUT, MANIFEST, ORIGIN, Manifest, Origin, file_facts

# Said of a file of an artifact that does not belong to it.
FOREIGN = "is not in the manifest"
# The file that marks an artifact as a record, and what `harms` says of it.
REDUCED, RECORD = "reduced", "says that it is a record, without files"
# A file that was changed less than this before it was hashed gets no stamp: another change at once could leave the same
# times. FAT counts in 2 s.
SETTLED_NS = 2 * 10**9

# Size, mtime_ns, ctime_ns and inode of each file of an artifact, by name.
Stamp = dict[str, list[int]]


class UnlikeItsCopy(Exception):
    """An origin differs from its intact copy."""


class Checks:
    """The checks of a home's artifacts."""

    def __init__(self, root: Path, copies: Copies) -> None:
        self.root = root
        self.copies = copies

    def harm(self, handle: Handle, *, again: bool = True) -> str | None:
        """What is wrong with the artifact in this home, or None.

        Without `again`, files that did not change since they were hashed are not hashed again.
        """
        if not again and self._is_stamped(handle):
            return None
        place, began = place_of(self.root, handle), time.time_ns()
        if not (place / MANIFEST).is_file():
            return "missing"
        try:
            stamp = stamp_of(place)
            harm = next(self.harms(handle), None)
        except (FileNotFoundError, NotADirectoryError) as error:
            return f"damaged ({error.filename} disappeared while it was checked)"
        if harm is not None:
            name, words = harm
            if words == RECORD:
                return "a record (its files are not in this home)"
            return words if words.startswith("of ") else f"damaged ({name} {words})"
        # A clock that was set back gives times that lie ahead, and so no stamp. Neither does an artifact that another
        # process replaced meanwhile: its folder was away while the stamp was taken.
        if stamp and max(max(times[1:3]) for times in stamp.values()) + SETTLED_NS < began:
            with suppress(OSError):  # a stamp only saves time, and the home may be read-only or full
                write_whole(self.stamp_place(handle), sealed(json.dumps(stamp).encode()), self.root / DRAFTS)
        return None

    def harms(self, handle: Handle) -> Iterator[tuple[str, str]]:
        """Yield each damaged file of the artifact with what is wrong; nothing if all bytes match the digest."""
        place = place_of(self.root, handle)
        path = place / MANIFEST
        content = read_or_none(path)
        if content is None:
            yield MANIFEST, "is missing"
        elif hashlib.sha256(content).hexdigest() != handle.digest:
            yield MANIFEST, "does not match its digest"
            content = None
        if content is None:
            content = self.copies.read(path)
        if content is None or hashlib.sha256(content).hexdigest() != handle.digest:
            return
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError:
            yield MANIFEST, f"of another layout, and layout {LAYOUT} is the one read here"
            return
        if manifest.layout != LAYOUT:
            yield MANIFEST, f"of layout {manifest.layout}, and layout {LAYOUT} is the one read here"
            return
        try:
            self.origin(handle)
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            yield ORIGIN, "is missing or cannot be read"
        except UnlikeItsCopy:
            yield ORIGIN, "does not match its copy"
        if (place / REDUCED).is_file():
            yield REDUCED, RECORD
            return
        names = set(file_names(place)) - {MANIFEST, ORIGIN}
        for name in sorted(manifest.files.keys() - names):
            yield name, "is missing"
        for name in sorted(names - manifest.files.keys()):
            yield name, FOREIGN
        for name in sorted(names & manifest.files.keys()):
            try:
                if file_facts(place / name) != manifest.files[name]:
                    yield name, "does not match the manifest"
            except (FileNotFoundError, NotADirectoryError):
                raise
            except OSError as error:  # a bad sector, or no permission
                yield name, f"cannot be read: {error.strerror}"

    def origin(self, handle: Handle) -> Origin:
        """The artifact's origin, compared with its copy.

        Raises:
            FileNotFoundError, NotADirectoryError: it is missing.
            pydantic.ValidationError: it cannot be read.
            UnlikeItsCopy: it differs from its copy.
        """
        path = place_of(self.root, handle) / ORIGIN
        content = path.read_bytes()
        origin = Origin.model_validate_json(content)
        if self.copies.differs(path, content):
            raise UnlikeItsCopy(path)
        return origin

    def stamp_place(self, handle: Handle) -> Path:
        """The path of the artifact's stamp, whether or not it exists."""
        return self.root / STAMPS / handle.kind / handle.digest

    def _is_stamped(self, handle: Handle) -> bool:
        """Whether no file of the artifact changed since the artifact was hashed and found intact."""
        content = read_or_none(self.stamp_place(handle))
        stamp = None if content is None else unsealed(content)
        try:
            return stamp is not None and json.loads(stamp) == stamp_of(place_of(self.root, handle))
        except (FileNotFoundError, NotADirectoryError):
            return False


def stamp_of(folder: Path) -> Stamp:
    """The stamp of the artifact in a folder."""
    stamp: Stamp = {}
    for name in file_names(folder):
        found = (folder / name).lstat()
        stamp[name] = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return stamp
