"""Owns models in an object store: bytes under their digest, and one index a model, replaced on condition.

`<model>/blobs/<sha256>` holds every file, manifest and configuration; nothing there ever changes. `<model>/index.json`
says which versions there are (`model_repo.object_index`). Crash windows: before the index is replaced there are blobs
that nothing names, which `sweep` removes after a day; after it the version is whole.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model_repo.config import NAME, parse_config
from model_repo.config_digest import SHARED_BYTES_MAX, config_sha256
from model_repo.errors import RepositoryError
from model_repo.manifest import MANIFEST, MANIFEST_BYTES_MAX, Manifest, file_sha256, parse_manifest
from model_repo.object_index import INDEX, INDEX_BYTES_MAX, Index, parse_index
from model_repo.release import Release
from model_repo.signing import SigningKey, Statement
from model_repo.store import Published, Staged, check_interface, check_staged
from model_repo.stores import Choose, ModelState

if TYPE_CHECKING:
    from obstore.store import ObjectStore as RawStore

CONFIG: Final = "config.pbtxt"
#: How often a change is begun anew because another was faster; one of them always gets through.
ATTEMPTS_MAX: Final = 64
#: A publisher that takes longer between its first blob and its index could lose blobs to a sweep.
ORPHAN_AGE: Final = timedelta(days=1)
_CHUNK_BYTES: Final = 8 << 20
#: A store that does not answer is told as such soon; a large file has its time.
CONNECT_TIME: Final = timedelta(seconds=5)
READ_TIME: Final = timedelta(seconds=20)
REQUEST_TIME: Final = timedelta(minutes=30)
RETRY_TIME: Final = timedelta(seconds=15)
RETRIES_MAX: Final = 4


def open_s3(bucket: str, prefix: str) -> "ObjectModelStore":
    """A store in a bucket. Keys, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT` …).

    Raises:
        RepositoryError: obstore is missing, or the environment's configuration is none.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError as error:
        raise RepositoryError("s3:// needs the package obstore: pip install 'tollway[converters]'") from error
    try:
        store = S3Store(
            bucket,
            prefix=prefix or None,
            conditional_put="etag",
            client_options={
                "connect_timeout": CONNECT_TIME,
                "read_timeout": READ_TIME,
                "timeout": REQUEST_TIME,
                # Told here, because options of the client take the place of those of the environment.
                "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"true", "1"},
            },
            retry_config={"max_retries": RETRIES_MAX, "retry_timeout": RETRY_TIME},
        )
    except BaseError as error:
        raise RepositoryError(f"s3://{bucket}: {str(error)[:300]}") from error
    return ObjectModelStore(store, f"s3://{bucket}/{prefix}".rstrip("/"))


class ObjectModelStore:
    """A `ModelStore` over anything that obstore opens and that replaces on condition."""

    def __init__(self, store: "RawStore", address: str) -> None:
        self._store = store
        self.address = address

    # -- reading -------------------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        import obstore

        with self._translated():
            listed = obstore.list_with_delimiter(self._store, "")
            found = [prefix.strip("/") for prefix in listed["common_prefixes"]]
        return tuple(sorted(name for name in found if NAME.fullmatch(name) and self._read_index(name)[0] is not None))

    def find(self, name: str) -> ModelState | None:
        index, _ = self._read_index(name)
        if index is None:
            return None
        shared = {path: self._read_blob(name, digest, SHARED_BYTES_MAX) for path, digest in index.shared.items()}
        text = shared.pop(CONFIG, b"").decode(errors="replace")
        digests = dict(sorted(index.versions.items()))
        return ModelState(
            name=name,
            versions=tuple(digests),
            release=index.release,
            config_text=text,
            shared=shared,
            digests=digests,
        )

    def open_version(self, name: str, number: int) -> AbstractContextManager[Path]:
        index, _ = self._read_index(name)
        if index is None or number not in index.versions:
            raise RepositoryError(f"model '{name[:140]}' has no version {number} in {self.address}")
        return self._fetched(name, index.versions[number])

    @contextlib.contextmanager
    def _fetched(self, name: str, digest: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="tollway-version-") as temporary:
            folder = Path(temporary) / "version"
            self.fetch(name, digest, folder)
            yield folder

    def fetch(self, name: str, digest: str, folder: Path) -> None:
        """Write the files of the version with this manifest into the new `folder`, checked byte by byte.

        Raises:
            RepositoryError: one is missing or not what the manifest says.
        """
        folder.mkdir()
        data = self._read_blob(name, digest, MANIFEST_BYTES_MAX)
        manifest = parse_manifest(data)
        for path, entry in manifest.files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            self._download(name, entry.sha256, entry.size_bytes, target)
        (folder / MANIFEST).write_bytes(data)

    def _download(self, name: str, digest: str, size: int, target: Path) -> None:
        import obstore

        hashed, left = hashlib.sha256(), size
        with self._translated(), target.open("xb") as file:
            for piece in obstore.get(self._store, f"{name}/blobs/{digest}").stream(_CHUNK_BYTES):
                left -= len(piece)
                if left < 0:
                    break
                hashed.update(piece)
                file.write(piece)
        if left or hashed.hexdigest() != digest:
            raise RepositoryError(f"{target.name}: in {self.address} is not what the manifest says")

    def _read_blob(self, name: str, digest: str, bytes_max: int) -> bytes:
        data = self._get(f"{name}/blobs/{digest}", bytes_max)[0]
        if data is None:
            raise RepositoryError(f"{name}: {digest[:16]}… is missing in {self.address}")
        if hashlib.sha256(data).hexdigest() != digest:
            raise RepositoryError(f"{name}: {digest[:16]}… in {self.address} has other bytes")
        return data

    def _read_index(self, name: str) -> tuple[Index | None, Any]:
        """The index, and what it must still be when it is replaced."""
        if NAME.fullmatch(name) is None:
            return None, None
        data, version = self._get(f"{name}/{INDEX}", INDEX_BYTES_MAX)
        return (None, None) if data is None else (parse_index(data), version)

    def _get(self, path: str, bytes_max: int) -> tuple[bytes | None, Any]:
        import obstore

        with self._translated():
            try:
                answer = obstore.get(self._store, path)
            except FileNotFoundError:
                return None, None
            if answer.meta["size"] > bytes_max:
                raise RepositoryError(f"{path}: {answer.meta['size']} bytes, more than {bytes_max}")
            data = bytes(answer.bytes())
            marks = {name: answer.meta.get(name) for name in ("e_tag", "version")}
            return data, {name: mark for name, mark in marks.items() if mark is not None}

    # -- changing ------------------------------------------------------------------------------------------------------

    def publish(
        self,
        name: str,
        staged: Path,
        config_text: str,
        *,
        shared: Mapping[str, bytes] | None = None,
        signer: SigningKey | None = None,
    ) -> Published:
        checked = check_staged(name, staged, config_text, shared)
        digest = file_sha256(staged / MANIFEST)
        numbers: list[int] = []

        def change(index: Index | None) -> Index | None:
            latest = max(index.versions, default=0) if index is not None else 0
            if index is not None:
                self._check_same_model(name, index, checked)
                if latest and index.versions[latest] == digest:
                    numbers[:] = [latest]
                    return None
            numbers[:] = [latest + 1]
            self._upload(checked, digest, index)
            return self._with_version(index, checked, latest + 1, digest, signer)

        is_new = self._change(name, change)
        number = numbers[0]
        return Published(name=name, version=number, path=Path(f"{name}/{number}"), is_new=is_new)

    def _with_version(
        self, index: Index | None, staged: Staged, number: int, digest: str, signer: SigningKey | None
    ) -> Index:
        old = index or Index(shared={path: _digest(data) for path, data in _shared_of(staged).items()})
        release = old.release
        if signer is not None:
            statement = Statement(
                model=staged.name,
                version=number,
                manifest_sha256=digest,
                config_sha256=staged.config_sha256 if index is None else self._config_sha256(staged.name, index),
            )
            changed = release.with_signature(number, signer.sign(statement), is_new_version=True)
            release = replace(changed, generation=release.generation + 1)
        return replace(old, versions={**old.versions, number: digest}, release=release)

    def _config_sha256(self, name: str, index: Index) -> str:
        text = self._read_blob(name, index.shared[CONFIG], SHARED_BYTES_MAX).decode()
        config = parse_config(text, name=name)
        return config_sha256(config, lambda path: self._read_blob(name, index.shared[path], SHARED_BYTES_MAX))

    def _check_same_model(self, name: str, index: Index, staged: Staged) -> None:
        text = self._read_blob(name, index.shared.get(CONFIG, ""), SHARED_BYTES_MAX).decode()
        check_interface(parse_config(text, name=name), staged.config)
        for path, data in staged.shared.items():
            if index.shared.get(path) != _digest(data):
                raise RepositoryError(f"{name}: is published with another {path}; publish under another name")

    def _upload(self, staged: Staged, digest: str, index: Index | None) -> None:
        """Everything but the index. What a version of the index names is there, and stays as long as that index."""
        known = self._named(staged.name, index) if index is not None else set()
        for data in _shared_of(staged).values() if index is None else ():
            self._put(f"{staged.name}/blobs/{_digest(data)}", data)
        manifest = parse_manifest((staged.files / MANIFEST).read_bytes())
        for path, entry in manifest.files.items():
            if entry.sha256 not in known:
                self._put(f"{staged.name}/blobs/{entry.sha256}", staged.files / path)
        self._put(f"{staged.name}/blobs/{digest}", staged.files / MANIFEST)

    def _named(self, name: str, index: Index) -> set[str]:
        """Digests of all blobs that an index leads to."""
        named = {*index.shared.values(), *index.versions.values()}
        for digest in index.versions.values():
            named |= {entry.sha256 for entry in self._manifest(name, digest).files.values()}
        return named

    def _manifest(self, name: str, digest: str) -> Manifest:
        return parse_manifest(self._read_blob(name, digest, MANIFEST_BYTES_MAX))

    def change_release(self, name: str, change: Callable[[Release], Release]) -> Release:
        made: list[Release] = []

        def changed(index: Index | None) -> Index:
            if index is None:
                raise RepositoryError(f"model '{name[:140]}' is not in {self.address}")
            release = replace(change(index.release), generation=index.release.generation + 1)
            made[:] = [release]
            return replace(index, release=release)

        self._change(name, changed)
        return made[0]

    def remove(self, name: str, choose: Choose) -> set[int]:
        removed: set[int] = set()

        def changed(index: Index | None) -> Index | None:
            if index is None:
                raise RepositoryError(f"model '{name[:140]}' is not in {self.address}")
            chosen = set(choose(tuple(sorted(index.versions)), index.release)) & index.versions.keys()
            removed.clear()
            removed.update(chosen)
            if not chosen:
                return None
            if max(index.versions) in chosen:
                raise RepositoryError(f"{name}: the newest version is never removed")
            release = replace(index.release.without(chosen), generation=index.release.generation + 1)
            versions = {number: digest for number, digest in index.versions.items() if number not in chosen}
            return replace(index, versions=versions, release=release)

        self._change(name, changed)
        self.sweep(name)
        return removed

    def sweep(self, name: str, *, now: datetime | None = None) -> int:
        """Remove blobs that no version names and that are older than `ORPHAN_AGE`; how many there were."""
        import obstore

        index, _ = self._read_index(name)
        if index is None:
            return 0
        named = self._named(name, index)
        oldest = (now or datetime.now(UTC)) - ORPHAN_AGE
        with self._translated():
            orphans = [
                meta["path"]
                for page in obstore.list(self._store, f"{name}/blobs")
                for meta in page
                if meta["path"].rsplit("/", 1)[-1] not in named and meta["last_modified"] < oldest
            ]
            if orphans:
                obstore.delete(self._store, orphans)
        return len(orphans)

    def _change(self, name: str, change: Callable[[Index | None], Index | None]) -> bool:
        """Replace the index by `change` of it, anew where another was faster; False where `change` gave None."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        data = b""
        for _ in range(ATTEMPTS_MAX):
            index, version = self._read_index(name)
            if data and index is not None and index.to_bytes() == data:
                # The condition failed for our own write: its answer was lost and it was sent again.
                return True
            new = change(index)
            if new is None:
                return False
            data = new.to_bytes()
            if len(data) > INDEX_BYTES_MAX:
                raise RepositoryError(f"{name}: its index would have more than {INDEX_BYTES_MAX} bytes")
            try:
                self._put(f"{name}/{INDEX}", data, mode=version or "create")
            except (AlreadyExistsError, PreconditionError):
                continue
            return True
        raise RepositoryError(f"{name}: {ATTEMPTS_MAX} others were faster; try again")

    def _put(self, path: str, data: bytes | Path, mode: Any = "overwrite") -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._translated(but=(AlreadyExistsError, PreconditionError)):
            # A condition can be put on a request in one part only.
            obstore.put(self._store, path, data, mode=mode, use_multipart=None if mode == "overwrite" else False)

    @contextlib.contextmanager
    def _translated(self, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """The border to the library."""
        from obstore.exceptions import BaseError

        try:
            yield
        except but:
            raise
        except (BaseError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise RepositoryError(f"{self.address}: {reason}") from error


def _shared_of(staged: Staged) -> dict[str, bytes]:
    return {CONFIG: staged.config_text.encode(), **staged.shared}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
