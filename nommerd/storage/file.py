"""Local files as sources and destinations, within the roots that the operator allows (`storage.file_roots`).

A path is judged after its links are resolved; a destination by its parent folder, since the name itself is replaced, never
followed. A root is a folder with all below it, or one file; the data directory stays closed wherever it is. Missing folders
below a root are made. Whoever may change
folders below a root while a job runs is trusted: API users own nothing on the disk.

An output is staged as `.NAME.TOKEN-RANDOM.part` beside its destination. The name is random besides, because two jobs may
hold equal tokens. Revoking is unlinking; publishing is linking (or renaming, to overwrite), which fails for a revoked one.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets as random
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from nommerd import runtime
from nommerd.errors import Fenced, InfrastructureError, InputError, NommerdError, Stop
from nommerd.scratch import sync_folder
from nommerd.storage import disk
from nommerd.storage.base import NO_OPTIONS, Fetched, OnBytes, Staging, Storage, UploadOptions

NAME_BYTES_MAX = 255  # of one name, on every Linux filesystem we care for
ROOTS_SECONDS = 1.0  # for which resolved roots are remembered: a submission asks for them again and again
HASH_BYTES = 16 * 2**20  # hashed per visit to the thread pool

_REFUSED = tuple((re.compile(pattern), message, hint) for pattern, message, hint in (
    (r"[\x00-\x1f\x7f]", "A file: URI holds a control character.", "Escape it: a newline is %0A."),
    (r"[?#]", "A file: URI has no query or fragment.", "For names that hold them, write ? as %3F and # as %23."),
    (r"%(?![0-9A-Fa-f]{2})", "A per cent sign in a file: URI begins no escape.", "For a name with one, write % as %25."),
    (r"%00", "A file name cannot hold a NUL.", "Rename the file."),
))


def uri_of(path: Path) -> str:
    """The URI of an absolute path, whatever bytes it holds."""
    return "file://" + quote(os.fsencode(path))


def path_of(uri: str, family: str = "source") -> Path:
    """The absolute path that a `file:` URI names. InputError `FAMILY.bad_uri` for any other text.

    Escapes are bytes of the name (`%25` is a per cent sign). A bare `?` or `#` is refused: some would read it as part of
    the name and others would not.
    """
    scheme, _, rest = uri.partition(":")
    if scheme.lower() != "file":
        raise _bad(family, "This is not a file: URI.")
    if rest.startswith("//"):
        host, slash, tail = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise _bad(family, "A file: URI names another host; only files of this machine can be reached.")
        rest = slash + tail
    if not rest.startswith("/"):
        raise _bad(family, "A file: URI needs an absolute path.",
                   "Write file:///path. The command line makes paths absolute.")
    for pattern, message, hint in _REFUSED:
        if pattern.search(rest):
            raise _bad(family, message, hint)
    try:
        name = os.fsdecode(unquote_to_bytes(rest))
    except UnicodeEncodeError:
        raise _bad(family, "A file: URI is no valid text.") from None
    return Path("/" + name.lstrip("/"))


def _bad(family: str, message: str, hint: str = "Write file:///path/to/it, with special characters escaped.") -> InputError:
    return InputError(f"{family}.bad_uri", message, hint)


def show(path: Path) -> str:
    """A path for people: one line, printable."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Roots:
    """What the operator opened to `file:` URIs: folders with all below them, and single files. None: nothing. What is
    `closed` stays so below a root too."""

    def __init__(self, roots: Sequence[str | Path], closed: Sequence[str | Path] = ()) -> None:
        self._roots = [Path(root).absolute() for root in roots]
        self._closed = [Path(path).absolute() for path in closed]
        self._resolved: tuple[list[str], list[str]] = [], []
        self._until = 0.0  # on the monotonic clock

    def check(self, real: Path, family: str) -> None:
        """Raise InputError `FAMILY.outside_roots` unless this resolved path is below a root, or is one. Whether anything
        is there makes no difference to the answer."""
        opened, closed = self._real()
        text = str(real)
        if not any(_within(text, root) for root in opened):
            hint = ("List the folder in the setting storage.file_roots." if self._roots
                    else "The setting storage.file_roots is empty: list the folders that file: URIs may reach.")
            raise InputError(f"{family}.outside_roots", f"{show(real)} is outside the folders that file: URIs may reach.",
                             hint)
        if any(_within(text, path) for path in closed):
            raise InputError(f"{family}.outside_roots", f"{show(real)} is where nommerd keeps files of its own.",
                             "Choose another folder.")

    def _real(self) -> tuple[list[str], list[str]]:
        """Both lists with links resolved. The operator may lead a link elsewhere, so that is looked at again soon."""
        now = time.monotonic()
        if now >= self._until:
            opened = {str(path) for root in self._roots for path in (_real(root), _real(root.parent) / root.name)}
            self._resolved = sorted(opened), [str(_real(path)) for path in self._closed]
            self._until = now + ROOTS_SECONDS
        return self._resolved


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class FileStorage(Storage):
    """`file:` URIs. See the module's docstring for what is allowed and how outputs appear."""

    def __init__(self, roots: Sequence[str | Path], max_source_bytes: int, closed: Sequence[str | Path] = ()) -> None:
        self._roots = Roots(roots, closed)
        self._max_source_bytes = max_source_bytes

    def check_source(self, uri: str) -> None:
        self._source(uri)

    def check_dest(self, uri: str) -> None:
        if uri.endswith("/"):  # a folder for several outputs
            self._roots.check(_real(path_of(uri, "dest")), "dest")
        else:
            self._dest(uri)

    def fetch(self, uri: str, target: Path, on_bytes: OnBytes, stop: Stop) -> Fetched:
        """A copy (never a hard link: the source may be written in place); a clone where the filesystem can share blocks.

        InfrastructureError source.changed when the file changed meanwhile.
        """
        source = self._source(uri)
        with _regular(source, "source") as descriptor, disk.errors("source", show(source)):
            before = os.fstat(descriptor)
            if before.st_size > self._max_source_bytes:
                raise InputError("source.too_large", f"{show(source)} has {before.st_size} bytes; at most "
                                 f"{self._max_source_bytes} are taken.", "The setting is storage.max_source_bytes.")
            with disk.fresh(target) as copy:
                done = disk.copy(descriptor, copy, before.st_size, on_bytes, stop)
                after = os.fstat(descriptor)
                if done != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                    raise InfrastructureError("source.changed", f"{show(source)} changed while it was copied.",
                                              "Submit files once they are complete.")
        return Fetched(target, done)

    def exists(self, uri: str) -> bool | None:
        """A folder for several outputs never counts as something that is there."""
        if uri.endswith("/"):
            self.check_dest(uri)
            return False
        path = self._dest(uri)
        try:
            _refuse_special(path)
            path.lstat()
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise disk.explain(error, "dest", show(path)) from None
        except OSError:
            return None
        return True

    def begin(self, uri: str, token: int, options: UploadOptions = NO_OPTIONS) -> Staging:
        """A name, and nothing on the disk yet."""
        dest = self._dest(uri)
        with disk.errors("dest", show(dest)):
            _refuse_special(dest)
        return Staging(uri=uri, handle=_staging_name(dest.name, token), token=token, options=options)

    def upload(self, staging: Staging, path: Path, confirm: Callable[[], None], on_bytes: OnBytes, stop: Stop) -> None:
        part = self._part(staging.uri, staging.handle)
        self._roots.check(part.parent / self._dest(staging.uri).name, "dest")
        with disk.errors("dest", show(part.parent)):
            runtime.in_pool(disk.make_folders, part.parent)
            with _regular(path, "node") as descriptor, disk.staged(part) as copy:
                confirm()
                size = os.fstat(descriptor).st_size
                if disk.copy(descriptor, copy, size, on_bytes, stop) != size:
                    raise InfrastructureError("node.io_error", "An output changed while it was copied.")
                runtime.in_pool(os.fsync, copy)
            runtime.in_pool(sync_folder, part.parent)

    def publish(self, staging: Staging, overwrite: bool) -> None:
        dest = self._dest(staging.uri)
        with disk.errors("dest", show(dest)):
            runtime.in_pool(_publish, self._part(staging.uri, staging.handle), dest, overwrite)

    def revoke(self, uri: str, handle: str) -> None:
        """Works outside the roots as well, so that nothing stays behind where the operator narrowed them."""
        if handle:
            with disk.errors("dest", show(path_of(uri, "dest"))), suppress(FileNotFoundError, NotADirectoryError):
                runtime.in_pool(os.unlink, self._part(uri, handle))

    def carries(self, uri: str, bytes: int, sha256: str, handle: str) -> bool:
        dest = self._dest(uri)
        try:
            with _regular(dest, "dest") as descriptor:
                return os.fstat(descriptor).st_size == bytes and _sha256(descriptor) == sha256
        except (OSError, NommerdError):
            return False

    def open_output(self, uri: str) -> int:
        with _regular(self._dest(uri), "dest") as descriptor:
            return os.dup(descriptor)

    def _source(self, uri: str) -> Path:
        real = _real(path_of(uri, "source"))
        self._roots.check(real, "source")
        return real

    def _dest(self, uri: str) -> Path:
        path = path_of(uri, "dest")
        last = unquote_to_bytes(uri).rpartition(b"/")[2]
        if last in (b"", b".", b"..") or len(last) > NAME_BYTES_MAX:
            raise InputError("dest.bad_uri", "The destination names no file.", "End it with a file name of at most 255 bytes.")
        real = _real(path.parent) / path.name
        self._roots.check(real, "dest")
        return real

    @staticmethod
    def _part(uri: str, handle: str) -> Path:
        if "/" in handle or "\0" in handle or not (handle.startswith(".") and handle.endswith(".part")):
            raise InfrastructureError("internal.bad_handle", "A staging handle is none of ours.", retryable=False)
        return _real(path_of(uri, "dest").parent) / handle


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _staging_name(name: str, token: int) -> str:
    """`.NAME.TOKEN-RANDOM.part`, valid UTF-8; a hash stands for a name that is too long or no text."""
    end = f".{token}-{random.token_hex(4)}.part"
    encoded = os.fsencode(name)
    try:
        fits = 1 + len(encoded) + len(end) <= NAME_BYTES_MAX and bool(encoded.decode())
    except UnicodeDecodeError:
        fits = False
    return "." + (name if fits else hashlib.sha256(encoded).hexdigest()[:32]) + end


@contextmanager
def _regular(path: Path, family: str) -> Iterator[int]:
    """A descriptor to read a regular file. Anything else is refused, and nothing that is no file is ever opened for long:
    a FIFO without a writer would block, a device may act on being opened."""
    def not_a_file() -> InputError:
        return InputError(f"{family}.not_a_file", f"{show(path)} is not a regular file.",
                          "Folders, devices, pipes and sockets are no media.")

    with disk.errors(family, show(path)):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise not_a_file()
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise not_a_file()
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_special(dest: Path) -> None:
    """A destination may be free, a file or a link (which is replaced, not followed)."""
    try:
        mode = dest.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise InputError("dest.not_a_file", f"{show(dest)} is there and not a regular file.",
                         "Folders, devices, pipes and sockets are never replaced.")


def _publish(part: Path, dest: Path, overwrite: bool) -> None:
    """Give the staged file its name, durably. Nothing is left of it when that fails."""
    try:
        _refuse_special(dest)
        if overwrite:
            part.rename(dest)
        else:
            disk.link_new(part, dest)
        part.unlink(missing_ok=True)  # what link leaves; and rename too, where both names already were one file
    except FileNotFoundError:
        raise Fenced(f"{part.name} is gone: a newer owner revoked it.") from None
    except FileExistsError:
        ours = _same_file(part, dest)  # linked before, then killed
        part.unlink(missing_ok=True)
        if not ours:
            raise InputError("dest.exists", f"{show(dest)} exists.", "Ask for overwrite to replace it.") from None
    except (OSError, NommerdError):
        part.unlink(missing_ok=True)
        raise
    sync_folder(dest.parent)


def _same_file(part: Path, dest: Path) -> bool:
    try:
        a, b = part.lstat(), dest.lstat()
    except FileNotFoundError:
        return False
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def _sha256(descriptor: int) -> str:
    """Of the whole file, in the thread pool, giving way to others now and then."""
    digest = hashlib.sha256()

    def some() -> int:
        data = os.read(descriptor, HASH_BYTES)
        digest.update(data)
        return len(data)

    while runtime.in_pool(some):
        pass
    return digest.hexdigest()


