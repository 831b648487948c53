"""TT-NN's built-in mock device: its own argument checks, program factories and allocators, but no values and no card.

The library finds the mock through environment variables, so it takes a process of its own per system. All that it needs
is written into one folder: a description of the system, and a runtime root that points into the installed wheel, with a
compiler that compiles nothing, since no kernel will ever run.
"""

import faulthandler
import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tt_flux_kontext.backend import VARIABLE, watch
from tt_flux_kontext.planner import systems

CALL_FILE = "TT_FLUX_KONTEXT_CALL_FILE"  # environment variable of the child process: where it names its last call
MEMORY, ROOM = "/dev/shm", 2**30  # a file system of Linux, and the free bytes that it must have
TAIL = 12  # lines of the library's words that an error repeats
_NOISE = re.compile(r"\s*\d+\. |Extension modules:")  # C++ stacks, Python's list of loaded libraries


class MockError(RuntimeError):
    """TT-NN refused a call on the mock device, or its process failed or died.

    The message has the call, how the process died if it did, and TT-NN's words or the trace.
    """


def available() -> bool:
    """Whether this Python has the TT-NN wheel."""
    return importlib.util.find_spec("ttnn") is not None


def run(system: str, module: str, request: object) -> Iterator[dict]:
    """Runs `python -m module` against a mock of the system; yields the JSON objects that it prints, as they come.

    Args:
        system: a name in `systems.SYSTEMS`.
        module: whose main calls `answer`.
        request: what it gets, as JSON.

    Raises:
        ValueError: unknown system.
        RuntimeError: this Python has no TT-NN.
        MockError: the module failed or crashed.
    """
    with tempfile.TemporaryDirectory(prefix="tt-flux-kontext-", dir=_place(), ignore_cleanup_errors=True) as folder:
        call, errors = Path(folder) / "call", Path(folder) / "errors"
        variables = environment(system, Path(folder)) | {
            VARIABLE: "silicon",
            CALL_FILE: str(call),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # the module is there from any working directory
        }
        command = [sys.executable, "-m", module, json.dumps(request)]
        with errors.open("w") as stderr:
            process = subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=stderr)
            with process.stdout:
                try:
                    for line in process.stdout:
                        if line.startswith(b"{"):  # TT-NN may print too
                            yield json.loads(line)
                except BaseException:  # Ctrl-C, or nobody wants the rest
                    process.kill()
                    raise
                finally:
                    process.wait()
        if process.returncode:
            last = call.read_text().strip() if call.exists() else "before any call"
            raise MockError(f"{system}, {last}: {_failure(process.returncode, errors.read_text())}")


@contextmanager
def answer() -> Iterator[object]:
    """For the child process: gives the request. Calls of TT-NN are noted, so that a failure can be traced to one."""
    faulthandler.enable(all_threads=False)
    with open(os.environ[CALL_FILE], "wb", buffering=0) as file:
        failed = False

        def write(words):
            os.pwrite(file.fileno(), words.ljust(80).encode(), 0)

        def note(name, function, *args, **kwargs):
            nonlocal failed
            if failed:  # what is called while an error goes up is not what failed
                return function(*args, **kwargs)
            write(f"in the call ttnn.{name}")
            try:
                result = function(*args, **kwargs)
            except Exception:
                failed = True
                raise
            write(f"after the call ttnn.{name}")
            return result

        write("before any call")
        with watch(note):
            yield json.loads(sys.argv[1])


def kernels() -> int:
    """For the child process: how many TT-NN has compiled so far. On a card it keeps them from process to process."""
    return sum(1 for _ in Path(os.environ["TT_METAL_CACHE"]).glob("*/kernels/*/*/"))


def _place() -> str | None:
    """Memory where it has room, since TT-NN writes ten thousands of small files; None: where temporary files go."""
    if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
        return MEMORY
    return None


def _failure(status: int, stderr: str) -> str:
    """How the process died, and what TT-NN said or else the trace."""
    lines = [line for line in stderr.splitlines() if line.strip() and not _NOISE.match(line)]
    words = next((lines[i:][:TAIL] for i, line in enumerate(lines) if "TT_FATAL" in line), lines[-TAIL:])
    if status < 0:  # of a crash, faulthandler's trace begins with the call
        trace = [i for i, line in enumerate(lines) if line.startswith("Fatal Python error")]
        words = [f"died of {signal.Signals(-status).name}", *(lines[trace[-1] :][:TAIL] if trace else words)]
    return "\n".join(words)


def environment(system: str, folder: Path) -> dict[str, str]:
    """Variables for a child process in which `import ttnn` meets a mock of the system.

    Args:
        system: a name in `systems.SYSTEMS`.
        folder: an existing one, for TT-NN's files; several systems can share it.

    Raises:
        ValueError: unknown system.
        RuntimeError: this Python has no TT-NN.
    """
    if system not in systems.SYSTEMS:
        raise ValueError(f"Unknown system '{system}': it is one of {', '.join(systems.SYSTEMS)}.")
    if not available():
        raise RuntimeError("The mock device needs the ttnn wheel: CPython 3.10 or 3.12 on Linux x86-64.")
    root = folder / "root"
    if not root.exists():
        _write_runtime_root(Path(importlib.util.find_spec("ttnn").origin).parent, root)
    cluster = folder / f"{system}.yaml"
    cluster.write_text(json.dumps(systems.cluster_description(systems.SYSTEMS[system])))  # JSON is YAML
    return {
        "TT_METAL_MOCK_CLUSTER_DESC_PATH": str(cluster),
        "TT_METAL_RUNTIME_ROOT": str(root),
        "TT_METAL_CACHE": f"{folder}/cache/",
        "TT_METAL_LOGS_PATH": f"{folder}/logs",
        "TT_METAL_DISABLE_BACKTRACE": "1",
        "TT_LOGGER_LEVEL": "off",
        "LOGURU_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",  # torch has no values to compute with; more threads would only wait, and busily
        # Nothing outside the folder: no sessions of Open MPI in /tmp, no segments in shared memory.
        "TMPDIR": str(folder),
        "OMPI_MCA_btl": "self",
        "TT_METAL_SHM_TRACKING_DISABLED": "1",
    }


def _write_runtime_root(wheel: Path, root: Path) -> None:
    compiler = root / "runtime/sfpi/compiler/bin/riscv-tt-elf-g++"
    grids = root / "tt_metal/core_descriptors"
    for folder in (compiler.parent, grids):
        folder.mkdir(parents=True)
    (root / "ttnn").symlink_to(wheel / "ttnn")
    (root / "runtime/hw").symlink_to(wheel / "runtime/hw")
    for original in (wheel / "tt_metal").iterdir():
        if original.name != grids.name:
            (root / "tt_metal" / original.name).symlink_to(original)
    for original in (wheel / "tt_metal/core_descriptors").iterdir():
        (grids / original.name).symlink_to(original)
    _correct_grid(grids / "wormhole_b0_80_arch.yaml")
    compiler.write_text(_COMPILER.format(program="".join(f"\\{byte:03o}" for byte in _program())))
    compiler.chmod(0o755)


def _correct_grid(link: Path) -> None:
    """Replaces the link to a table of grids by a copy in which N300 cards have 8x8 cores.

    They do as long as Ethernet cores dispatch, and TT-NN opens them so. But some of its operations are checked against
    this table, for dispatch from the last row of Tensix cores, and would be refused for their use of that row.
    """
    table = link.read_text()
    before, card, grid = table.partition("nebula_x2:")
    link.unlink()
    link.write_text(before + card + grid.replace("end: [7, 6]", "end: [7, 7]"))


# Answers for its version, writes the dependency file asked for, and makes every linked program the same one. It is
# called ten thousands of times: the shell does all of it itself.
_COMPILER = """#!/bin/sh
for argument in "$@"; do
  case "$argument" in
    --version) echo "riscv-tt-elf-g++ (tenstorrent/sfpi:7.89.0[1050]) 15.1.0"; exit 0 ;;
  esac
  case "$previous" in
    -o) output=$argument ;;
    -MF) dependencies=$argument ;;
  esac
  previous=$argument
done
if [ -n "$dependencies" ]; then echo "$output:" > "$dependencies"; fi
case "$output" in
  *.o | *.gch*) : > "$output" ;;
  ?*) printf '{program}' > "$output" ;;
esac
"""

_TEXT, _DATA = 0x8000, 0xFFB00800  # addresses
_CODE = struct.pack("<4I", *[0x00008067] * 4)  # ret


def _program() -> bytes:
    """The smallest RISC-V executable that TT-NN's loader takes: a text and an empty data segment, one relocation."""
    sections = [  # name, type, flags, address, content, link, info, alignment, entry size
        ("", 0, 0, 0, b"", 0, 0, 0, 0),
        (".text", 1, 6, _TEXT, _CODE, 0, 0, 4, 0),
        (".data", 1, 3, _DATA, b"", 0, 0, 4, 0),
        (".segments", 4, 0, 0, struct.pack("<6I", _TEXT, _TEXT, 0x10000, _DATA, _DATA, 0x1000), 0, 0, 4, 0),
        (".rela.text", 4, 0, 0, struct.pack("<IIi", _TEXT, 1 << 8 | 51, 0), 5, 1, 4, 12),
        (".symtab", 2, 0, 0, bytes(16) + struct.pack("<IIIBBH", 1, _TEXT, len(_CODE), 0x12, 0, 1), 6, 1, 4, 16),
        (".strtab", 3, 0, 0, b"\0_start\0", 0, 0, 1, 0),
    ]
    names = "\0".join([section[0] for section in sections] + [".shstrtab", ""]).encode()
    sections.append((".shstrtab", 3, 0, 0, names, 0, 0, 1, 0))

    start = 52 + 2 * 32  # behind the ELF header and two program headers
    start += -start % 16
    body, headers = b"", b""
    offsets = {}
    for name, kind, flags, address, content, link, info, alignment, entry in sections:
        body += bytes(-len(body) % 4)
        offsets[name] = start + len(body) if kind else 0
        position = names.index(name.encode() + b"\0")
        fields = (position, kind, flags, address, offsets[name], len(content), link, info, alignment, entry)
        headers += struct.pack("<10I", *fields)
        body += content
    body += bytes(-len(body) % 4)
    elf = b"\x7fELF\x01\x01\x01" + bytes(9)
    elf += struct.pack(
        "<HHIIIIIHHHHHH", 2, 243, 1, _TEXT, 52, start + len(body), 0, 52, 32, 2, 40, len(sections), len(sections) - 1
    )
    load = 1
    elf += struct.pack("<8I", load, offsets[".text"], _TEXT, _TEXT, len(_CODE), len(_CODE), 5, 16)
    elf += struct.pack("<8I", load, offsets[".data"], _DATA, _TEXT + len(_CODE), 0, 0, 6, 16)
    return elf.ljust(start, b"\0") + body + headers
