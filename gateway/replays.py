"""Owns `Idempotency-Key`: one execution per key, the same bytes back for 24 hours, over all workers of a machine.

A keyed call first takes a claim: a lock file in its tenant's folder, held (flock) while the call runs. Its reply is
written beside it before the caller gets it; then the claim is gone, and whoever sends the key again reads the file.

Crash windows
  while the claim is held      the lock ends with the process; its record has no mark and is voided (R7): run anew
  after the reply is written   the call may be voided as above, but its reply is given back: free, never twice
Files are written without fsync: a power loss takes a reply together with the unsynced mark that would have charged it.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from gateway.call import Headers, RequestHead
from gateway.errors import Code, Refusal

REPLAY_FOLDER: Final = "replay"
REPLY_BYTES_MAX: Final = 1024 * 1024
#: A keyed request is held whole until its key is looked up.
REQUEST_BYTES_MAX: Final = 16 * 1024 * 1024
KEPT_S: Final = 24 * 3_600
#: Replies kept for one tenant, as each worker sees it.
ENTRIES_MAX: Final = 10_000
#: Keyed calls that one worker runs at a time: each holds a file open.
CLAIMS_MAX: Final = 256
#: Files that one sweep looks at; a sweep runs every second.
SWEPT_FILES: Final = 200
#: A count of a tenant's entries is believed for this long.
COUNT_S: Final = 60
_VERSION: Final = 1
_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}\Z")
_LOCK: Final = ".lock"
#: Of the first answer only: limits and times that are not those of the replay.
_NOT_KEPT: Final = frozenset({b"ratelimit", b"ratelimit-policy", b"server-timing", b"content-length"})
_FINGERPRINTED: Final = (b"content-type", b"content-encoding", b"inference-header-content-length", b"grpc-encoding")

MISMATCH: Final = Refusal(
    code=Code.IDEMPOTENCY_MISMATCH, message="this Idempotency-Key was used for another request: use a new key"
)
IN_FLIGHT: Final = Refusal(
    code=Code.IDEMPOTENCY_IN_FLIGHT,
    message="the call with this Idempotency-Key is still running: ask again",
    retry_after_ms=1_000,
)
ALREADY_SERVED: Final = Refusal(
    code=Code.ALREADY_SERVED, message="this call was answered, and its reply was too large to be kept"
)
FULL: Final = Refusal(
    code=Code.OVERLOADED, message="too many keyed calls run or are kept: try again later", retry_after_ms=1_000
)
UNSUPPORTED: Final = Refusal(
    code=Code.IDEMPOTENCY_UNSUPPORTED, message="Idempotency-Key needs an API key and metering, and is not for streams"
)
BROKEN: Final = Refusal(code=Code.METERING_UNAVAILABLE, message="keyed calls cannot be kept now", retry_after_ms=1_000)
TOO_LARGE: Final = Refusal(
    code=Code.BODY_TOO_LARGE, message=f"a request with an Idempotency-Key may have {REQUEST_BYTES_MAX} bytes"
)


class Stored(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A reply as it was given. `body` None: it was too large to be kept."""

    version: int = _VERSION
    fingerprint: bytes
    created_s: int
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | None
    trailers: list[tuple[bytes, bytes]] | None


_decoder: msgspec.msgpack.Decoder[Stored] = msgspec.msgpack.Decoder(Stored)


class Claim:
    """The right to run one keyed call. Ends exactly once: by `keep` and `end`, or by `end` alone (nothing is kept)."""

    def __init__(self, store: "ReplayStore", path: Path, fd: int, fingerprint: bytes, now_s: int) -> None:
        self._store = store
        self._path = path
        self._fd: int | None = fd
        self._fingerprint = fingerprint
        self._now_s = now_s
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """A piece of a streamed reply."""
        self._size += len(data)
        if self._size <= REPLY_BYTES_MAX:
            self._pieces.append(data)

    def keep(self, status: int, headers: Headers, body: bytes, trailers: Headers | None) -> None:
        """Write the reply, `body` being the rest behind what was added. Raises OSError."""
        self.add(body)
        is_small = self._size <= REPLY_BYTES_MAX
        stored = Stored(
            fingerprint=self._fingerprint,
            created_s=self._now_s,
            status=status,
            headers=[pair for pair in headers if pair[0] not in _NOT_KEPT] if is_small else [],
            body=b"".join(self._pieces) if is_small else None,
            trailers=None if trailers is None else list(trailers),
        )
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.msgpack.encode(stored))
            temporary.replace(self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def end(self) -> None:
        """Give the claim back; idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._store.release(self._path, fd)


class ReplayStore:
    """Claims and kept replies under one folder, shared by the workers of a machine. Short blocking file calls."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._claims = 0
        #: Folder → (entries, when they were counted).
        self._counts: dict[Path, tuple[int, int]] = {}
        self._sweep: Iterator[Path] = iter(())

    def begin(
        self, tenant: str, key_id: str, key: bytes, head: RequestHead, body: bytes, *, now_s: int
    ) -> Claim | Stored | Refusal:
        """A claim for the first call with `key`, the reply of an earlier one, or why neither.

        A key belongs to the tenant; the API key is part of what is compared, so that no key reads another's replies.
        """
        if not _KEY.match(key):
            message = "Idempotency-Key must be 1 to 255 visible ASCII characters"
            return Refusal(code=Code.BAD_REQUEST, message=message)
        folder = self._root / hashlib.sha256(tenant.encode()).hexdigest()[:32]
        path = folder / hashlib.sha256(tenant.encode() + b"\0" + key).hexdigest()
        fingerprint = _fingerprint(key_id, head, body)
        try:
            return _found(path, fingerprint, now_s) or self._claim(folder, path, fingerprint, now_s)
        except OSError:
            # Full or broken disk: a call that could not be replayed must not run under this promise.
            return BROKEN

    def release(self, path: Path, fd: int) -> None:
        """For claims only."""
        self._claims -= 1
        _let_go(path, fd, is_ours=True)

    def sweep(self, now_s: int) -> int:
        """Forget what is older than 24 hours, a few files at a time; how many went."""
        gone = 0
        for _ in range(SWEPT_FILES):
            path = next(self._sweep, None)
            if path is None:
                self._sweep = _files(self._root)
                break
            gone += _forget(path, now_s)
        return gone

    def _claim(self, folder: Path, path: Path, fingerprint: bytes, now_s: int) -> Claim | Stored | Refusal:
        if self._claims >= CLAIMS_MAX or self._count(folder, now_s) >= ENTRIES_MAX:
            return FULL
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path.with_name(path.name + _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        is_ours = False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between our look and our lock the call may have ended: then its reply is there, or its lock file is gone.
            is_ours = os.fstat(fd).st_nlink > 0
            found = _found(path, fingerprint, now_s)
            if found is None and is_ours:
                os.pwrite(fd, fingerprint, 0)
                known = self._counts[folder]
                self._counts[folder] = (known[0] + 1, known[1])
                self._claims += 1
                return Claim(self, path, fd, fingerprint, now_s)
        except BlockingIOError:
            running = _running(fd, len(fingerprint))
            return MISMATCH if running and running != fingerprint else IN_FLIGHT
        except BaseException:
            # A disk that fails here must not cost a file, a lock and a claim for good.
            _let_go(path, fd, is_ours=is_ours)
            raise
        _let_go(path, fd, is_ours=is_ours)
        return found or IN_FLIGHT

    def _count(self, folder: Path, now_s: int) -> int:
        known = self._counts.get(folder)
        if known is None or not 0 <= now_s - known[1] < COUNT_S:
            names = os.listdir(folder) if folder.is_dir() else []
            if len(self._counts) >= ENTRIES_MAX:
                self._counts.clear()
            known = self._counts[folder] = (sum(not name.endswith(_LOCK) for name in names), now_s)
        return known[0]


def _running(fd: int, size: int) -> bytes:
    """The fingerprint of the call that holds the lock; closes `fd`."""
    try:
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def _let_go(path: Path, fd: int, *, is_ours: bool) -> None:
    """Give a lock back. One that is not `is_ours` is not removed: its name may be another's lock by now."""
    try:
        if is_ours:
            path.with_name(path.name + _LOCK).unlink(missing_ok=True)
    finally:
        os.close(fd)


def _found(path: Path, fingerprint: bytes, now_s: int) -> Stored | Refusal | None:
    """What is kept under a key, if it may still be given back."""
    try:
        stored = _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        # Cut short by a power loss: as good as none.
        return None
    # A clock that stepped back keeps what it has: running a call again would be worse.
    if now_s - stored.created_s >= KEPT_S:
        return None
    if stored.fingerprint != fingerprint:
        return MISMATCH
    return ALREADY_SERVED if stored.body is None else stored


def _fingerprint(key_id: str, head: RequestHead, body: bytes) -> bytes:
    """SHA-256 over what makes two requests the same: who asks, method, target, how the body is written, the body."""
    digest = hashlib.sha256()
    fields = [pair for pair in head.headers if pair[0] in _FINGERPRINTED]
    for part in (key_id.encode(), head.method, head.target, *(name + b":" + value for name, value in sorted(fields))):
        digest.update(b"%d:" % len(part) + part)
    digest.update(body)
    return digest.digest()


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            yield Path(folder, name)


def _forget(path: Path, now_s: int) -> bool:
    """Remove what is over: an old reply, a half-written one, the lock file of a process that is gone."""
    try:
        if now_s - path.stat().st_mtime < KEPT_S:
            return False
        if path.name.endswith(_LOCK):
            return _forget_lock(path)
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _forget_lock(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
