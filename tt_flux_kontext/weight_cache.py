"""Parameters in the form that the device takes, kept on disk: a second start reads them and converts nothing.

    FOLDER/hashes/                     sha256 of checkpoint files by path, size and time, so that none is hashed twice
    FOLDER/transformer-1a2b.../        an entry: what one model has on the device in one precision
        manifest.json                  its key; [name, file, bytes, CRC-32] of each tensor in the model's order
        00000.tensorbin ...            by ttnn.dump_tensor
    FOLDER/.3c4d....filling/           an entry in the making; it gets its name when it is whole

The key is the content of the checkpoint's files, wherever they lie, and all else that the tensors depend on. Whatever
goes wrong here costs no more than the caching: an entry that is not as it was written is rebuilt, and a folder that
can't be written is left alone after one warning. What adapters change is never kept: an entry is the checkpoint's own.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from loguru import logger

from tt_flux_kontext.backend import choose, ttnn
from tt_flux_kontext.cache_folder import FILLING, HASHES, MANIFEST, STALE
from tt_flux_kontext.checkpoint import Tensors
from tt_flux_kontext.mesh import Parallel
from tt_flux_kontext.precision import Precision

FORMAT = 1  # raise it when the same tensor of a checkpoint gets other values on the device, under the same name
SMALL = 10_000_000  # bytes of a file that is hashed again sooner than it is worth remembering

_PIECE = 1 << 22  # bytes read at once
_THREADS = 4  # that compute checksums while the device gets its tensors
_AHEAD = 1_000_000_000  # bytes that they are ahead: what they read is still in memory when the device needs it

_known: dict[tuple, int] = {}  # checksums, by what tells files and their states apart

Make = Callable[[], "ttnn.Tensor"]


class Changed(NamedTuple):
    """A parameter with what adapters add to it: `by` tells which, `make` makes it so."""

    by: str
    make: Make


Keep = Callable[[str, Make, Changed | None], "ttnn.Tensor"]
"""Called for each parameter of a model in turn, with how to make it as the checkpoint has it, and changed. Gives the
changed one, if there is one, wherever it is."""


def uncached(name: str, make: Make, changed: Changed | None) -> "ttnn.Tensor":
    """The `Keep` that keeps nothing."""
    return changed.make() if changed else make()


class _Damaged(Exception):
    """An entry is not as it was written; the message says in what."""


class WeightCache:
    """The cache in a folder, which is made when it is needed. Without a folder it keeps nothing."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.writable = True  # until it turns out not to be

    def build(self, model: str, tensors: Tensors, precision: Precision, parallel: Parallel, size: int, build, progress):
        """What `build(keep)` gives, its parameters read from the cache or kept there for the next time.

        Args:
            model: its name.
            parallel: how it is split over the device's chips; a file has the shards of all of them, each once.
            size: bytes that its parameters take on the device.
            build: takes a `Keep`; called once, or twice when an entry turns out to be damaged.
            progress: `progress(what, bytes)` gives a bar, as tqdm's, for the time that hashing takes.
        """
        if self.folder is None:
            return build(uncached)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            key = self._key(model, tensors, precision, parallel, progress)
        except (OSError, PackageNotFoundError) as error:
            self._warn(error)
            self.folder = None
            return build(uncached)
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        entry = self.folder / f"{model.replace(' ', '-')}-{digest[:32]}"
        if entry.exists():
            try:
                return self._read(entry, key, build)
            except _Damaged as error:
                logger.warning(f"{entry}, the cached weights of {model}, is rebuilt: {error}.")
        # Outside the except block nothing holds on to a half-built model and its memory any more.
        return self._fill(entry, key, size, build) if self.writable else build(uncached)

    def _key(self, model: str, tensors: Tensors, precision: Precision, parallel: Parallel, progress) -> dict:
        files = set().union(*(entry.files for entry in tensors.entries.values()))
        with progress(f"{tensors.folder.name} sha256", sum(file.stat().st_size for file in files)) as bar:
            hashes = sorted(self._hash(file, bar.update) for file in files)
        return {
            "format": FORMAT,
            "model": model,
            "files": hashes,
            "precision": asdict(precision),
            "backend": choose(),
            "ttnn": version("ttnn") if choose() == "silicon" else None,
            "arch": parallel.device.arch().name,  # TT-NN may convert on the chip
            "split": parallel.key,
        }

    def _hash(self, file: Path, progress: Callable) -> str:
        """sha256 of a file, remembered by its place, size and time."""
        status = file.stat()
        identity = f"{file.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
        memo = self.folder / HASHES / hashlib.sha256(identity.encode()).hexdigest()
        with suppress(OSError, ValueError):  # not remembered, or not legible
            digest, _, known = memo.read_text().partition("\n")
            if known == identity and len(digest) == 64:
                return digest
        sha256 = hashlib.sha256()
        for piece in _pieces(file):
            sha256.update(piece)
            progress(len(piece))
        if status.st_size >= SMALL:
            with suppress(OSError):  # if no entry can be written either, `_fill` says so
                memo.parent.mkdir(exist_ok=True)
                temporary = memo.with_name(f".{uuid.uuid4().hex}")
                temporary.write_text(f"{sha256.hexdigest()}\n{identity}")
                temporary.replace(memo)
        return sha256.hexdigest()

    def _read(self, entry: Path, key: dict, build):
        """Raises `_Damaged`."""
        try:
            manifest = json.loads((entry / MANIFEST).read_text())
            tensors = [(name, entry / file, size, crc32) for name, file, size, crc32 in manifest["tensors"]]
            if manifest["key"] != key:
                raise _Damaged("its manifest is of something else")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _Damaged(f"its manifest can't be read ({error})") from error
        for _, file, size, _ in tensors:
            found = file.stat().st_size if file.is_file() else 0
            if found != size:
                raise _Damaged(f"{file.name} has {found} bytes, not {size}")
        pool = ThreadPoolExecutor(_THREADS)
        checked = _checked(pool, tensors)

        def keep(name: str, make: Make, changed: Changed | None) -> "ttnn.Tensor":
            try:
                (known, file, _, crc32), found = next(checked, (("nothing", None, 0, 0), 0))
                if known != name:
                    raise _Damaged(f"it has {known} where the model has {name}")
                if found != crc32:
                    raise _Damaged(f"{file.name} has other bytes than were written")
                if not changed:
                    return ttnn.load_tensor(file)
            except (OSError, RuntimeError) as error:  # TT-NN raises the latter
                raise _Damaged(f"a file of it can't be read ({error})") from error
            return changed.make()

        try:
            return build(keep)
        finally:
            pool.shutdown(cancel_futures=True)

    def _fill(self, entry: Path, key: dict, size: int, build):
        work = self.folder / f".{uuid.uuid4().hex}{FILLING}"
        tensors = []  # what the manifest will list, with checksums to come

        def keep(name: str, make: Make, changed: Changed | None) -> "ttnn.Tensor":
            if not self.writable:
                return uncached(name, make, changed)
            tensor = make()
            file = work / f"{len(tensors):05}.tensorbin"
            try:
                # Read back from the device: so an edit from the cache is the same to the bit.
                ttnn.dump_tensor(file, tensor)
                tensors.append((name, file.name, file.stat().st_size, pool.submit(_crc32, file)))
            except (OSError, RuntimeError) as error:  # TT-NN raises the latter
                self._warn(error)
                shutil.rmtree(work, ignore_errors=True)
            if not changed:
                return tensor
            del tensor
            return changed.make()

        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                self._prepare(work, entry, key, size)
                result = build(keep)
                self._finish(work, entry, key, tensors)
                return result
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _prepare(self, work: Path, entry: Path, key: dict, size: int) -> None:
        """Makes the folder to fill, and room for it: what is damaged goes, and what others left behind."""
        try:
            for left in self.folder.glob(f".*{FILLING}"):
                with suppress(OSError):  # others may sweep too
                    if time.time() - left.stat().st_mtime > STALE:
                        shutil.rmtree(left)
            work.mkdir()
            if entry.exists():
                trash = self.folder / f".{uuid.uuid4().hex}{FILLING}"
                trash.mkdir()
                entry.rename(trash / entry.name)
                shutil.rmtree(trash)
            if key["precision"]["linear_weights"] != "bfloat16":
                size *= 2  # the emulator keeps block floats in 16 bits
            if shutil.disk_usage(work).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._warn(error)

    def _finish(self, work: Path, entry: Path, key: dict, tensors: list) -> None:
        if not self.writable:
            return
        try:
            listed = [(*each, crc32.result()) for *each, crc32 in tensors]
            (work / MANIFEST).write_text(json.dumps({"key": key, "tensors": listed}))
            work.rename(entry)
        except OSError as error:
            if not entry.exists():  # else another process was quicker
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        logger.warning(f"Weights can't be cached in {self.folder} ({reason}): the next start converts them again.")
        self.writable = False


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb", buffering=0) as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _checked(pool: ThreadPoolExecutor, tensors: list[tuple]) -> Iterator[tuple[tuple, int]]:
    """Each (name, file, size, ...) with the file's checksum, computed in the background, some files ahead."""
    waiting, ahead = deque(), 0
    for tensor in tensors:
        _, file, size, *_ = tensor
        waiting.append((tensor, size, pool.submit(_crc32, file)))
        ahead += size
        while ahead > _AHEAD:
            first, size, crc32 = waiting.popleft()
            ahead -= size
            yield first, crc32.result()
    for first, _, crc32 in waiting:
        yield first, crc32.result()


def _crc32(file: Path) -> int:
    """A file's checksum, computed once in this process unless the file changes."""
    status = file.stat()
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if identity not in _known:
        crc32 = 0
        for piece in _pieces(file):
            crc32 = zlib.crc32(piece, crc32)
        _known[identity] = crc32
    return _known[identity]
