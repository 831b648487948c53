"""How fast weights come to the emulated device: from a checkpoint, from the cache, and when they come back later in the
same process; and what the disk and the memory alone would take.

    python -m reference.benchmark_loading CHECKPOINT [--precision bf16]

GB/s are of the files that are read, none of which is in the page cache before: the checkpoint's for a cold start, which
also hashes, converts and fills a cache (beside the checkpoint, for the time being), and the cache's for a warm one. A
second load takes what was kept in memory, as far as there was room for it.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tt_flux_kontext.backend import choose
from tt_flux_kontext.cache_folder import VARIABLE
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.device import open_device
from tt_flux_kontext.precision import PRECISIONS
from tt_flux_kontext.residency import MODELS, Models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a folder")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="(default: %(default)s)")
    arguments = parser.parse_args()
    choose("emulated")
    with open_device("emulated:p150") as device, tempfile.TemporaryDirectory(dir=arguments.checkpoint.parent) as folder:

        def start(cache: str) -> Models:
            os.environ[VARIABLE] = cache
            models = Models(Checkpoint(arguments.checkpoint), device, PRECISIONS[arguments.precision])
            models.progress_bar_config = {"disable": True}
            load(models)
            return models

        def load(models: Models) -> None:
            for name in MODELS:
                models[name]
                models.release(name)

        checkpoint = list(arguments.checkpoint.glob("*/*.safetensors"))
        _report("checkpoint, plain read", checkpoint, lambda: _read(checkpoint))
        _report("start without a cache", checkpoint, lambda: start("off"))
        _report("cold start", checkpoint, lambda: start(folder))
        kept = list(Path(folder).glob("*/*.tensorbin"))
        _report("cache, plain read", kept, lambda: _read(kept))
        models = _report("warm start", kept, lambda: start(folder))
        _report("second load in a process", kept, lambda: load(models))
        _report("memory, plain copy", kept, lambda: _copy(kept))


def _report(what: str, files: list[Path], work: Callable):
    """Prints how long it took, and returns what it gave."""
    os.sync()  # only what is written can leave the page cache
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    result = work()
    seconds, size = time.perf_counter() - begin, sum(file.stat().st_size for file in files)
    print(f"{what:<24}{size / 1e9:>8.2f} GB{seconds:>9.2f} s{size / seconds / 1e9:>8.2f} GB/s", flush=True)
    return result


def _read(files: list[Path]) -> None:
    buffer = bytearray(1 << 22)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _copy(files: list[Path]) -> None:
    """As many bytes as they have, from a place in memory to another one, both larger than the processor's caches."""
    source, target = (torch.zeros(1 << 28, dtype=torch.uint8) for _ in range(2))
    for file in files:
        for piece in range(0, file.stat().st_size, len(source)):
            size = min(len(source), file.stat().st_size - piece)
            target[:size].copy_(source[:size])


if __name__ == "__main__":
    main()
