"""TT-NN's built-in mock device: its own argument checks, program factories and allocators, but no values and no card.

The library finds the mock through environment variables, so it takes a process of its own per system. All that it needs
is written into one folder: a description of the system, and a runtime root that points into the installed wheel, with a
compiler that compiles nothing, since no kernel will ever run.
"""

import faulthandler
import importlib.util
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tt_flux_kontext.backend import VARIABLE, watch

SYSTEMS = ("n150", "p100", "p150")
CALL_FILE = "TT_FLUX_KONTEXT_CALL_FILE"  # environment variable of the child process: where it names its last call
TAIL = 12  # lines of the library's words that an error repeats


class MockError(RuntimeError):
    """TT-NN refused a call on the mock device, or its process died. The message has the call and TT-NN's words."""


def available() -> bool:
    """Whether this Python has the TT-NN wheel."""
    return importlib.util.find_spec("ttnn") is not None


def run(system: str, module: str, request: object) -> Iterator[dict]:
    """Runs `python -m module` against a mock of the system; yields the JSON objects that it prints, as they come.

    Args:
        system: one of SYSTEMS.
        module: whose main calls `answer`.
        request: what it gets, as JSON.

    Raises:
        ValueError: unknown system.
        RuntimeError: this Python has no TT-NN.
        MockError: the module failed or crashed.
    """
    with tempfile.TemporaryDirectory(prefix="tt-flux-kontext-") as folder:
        call, errors = Path(folder) / "call", Path(folder) / "errors"
        variables = environment(system, Path(folder)) | {VARIABLE: "silicon", CALL_FILE: str(call)}
        command = [sys.executable, "-m", module, json.dumps(request)]
        with errors.open("w") as stderr:
            process = subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=stderr)
            try:
                for line in process.stdout:
                    if line.startswith(b"{"):  # TT-NN may print too
                        yield json.loads(line)
            except GeneratorExit:  # nobody wants the rest
                process.kill()
                raise
            finally:
                process.wait()
        if process.returncode:
            last = call.read_text().strip() or "none"
            raise MockError(f"{system}, in the call {last}:\n{_words(errors.read_text())}")


@contextmanager
def answer() -> Iterator[object]:
    """For the child process: gives the request. Calls of TT-NN are noted, so that a failure can be traced to one."""
    faulthandler.enable()
    with open(os.environ[CALL_FILE], "wb", buffering=0) as file:
        failed = False

        def note(name, function, *args, **kwargs):
            nonlocal failed
            if not failed:  # what is called while an error goes up is not what failed
                os.pwrite(file.fileno(), f"ttnn.{name}".ljust(80).encode(), 0)
            try:
                return function(*args, **kwargs)
            except Exception:
                failed = True
                raise

        with watch(note):
            yield json.loads(sys.argv[1])


def _words(stderr: str) -> str:
    """What TT-NN said, or else the end of the trace."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    fatal = [i for i, line in enumerate(lines) if "TT_FATAL" in line]
    return "\n".join(lines[fatal[0] :][:TAIL] if fatal else lines[-TAIL:])


def environment(system: str, folder: Path) -> dict[str, str]:
    """Variables for a child process in which `import ttnn` meets a mock of the system.

    Args:
        system: one of SYSTEMS.
        folder: an existing one, for TT-NN's files; several systems can share it.

    Raises:
        ValueError: unknown system.
        RuntimeError: this Python has no TT-NN.
    """
    if system not in SYSTEMS:
        raise ValueError(f"Unknown system '{system}': it is one of {', '.join(SYSTEMS)}.")
    if not available():
        raise RuntimeError("The mock device needs the ttnn wheel: CPython 3.10 or 3.12 on Linux x86-64.")
    root = folder / "root"
    if not root.exists():
        _write_runtime_root(Path(importlib.util.find_spec("ttnn").origin).parent, root)
    cluster = folder / f"{system}.yaml"
    cluster.write_text(json.dumps(_cluster(system)))  # JSON is YAML
    return {
        "TT_METAL_MOCK_CLUSTER_DESC_PATH": str(cluster),
        "TT_METAL_RUNTIME_ROOT": str(root),
        "TT_METAL_CACHE": f"{folder}/cache/",
        "TT_METAL_LOGS_PATH": f"{folder}/logs",
        "TT_METAL_DISABLE_BACKTRACE": "1",
        "TT_LOGGER_LEVEL": "off",
        "LOGURU_LEVEL": "ERROR",
        # No segments in shared memory: nothing outside the folder.
        "OMPI_MCA_btl": "self",
        "TT_METAL_SHM_TRACKING_DISABLED": "1",
    }


def _cluster(system: str) -> dict:
    """One chip, as UMD describes it. Masks say which rows, DRAM banks and links are switched off on that card."""
    wormhole = system == "n150"
    harvesting = {
        "noc_translation": True,
        "harvest_mask": 64 if wormhole else 192,
        "dram_harvesting_mask": 8 if system == "p100" else 0,
        "eth_harvesting_mask": {"n150": 0, "p100": 16383, "p150": 288}[system],
        "pcie_harvesting_mask": 0 if wormhole else 2,
    }
    if not wormhole:
        harvesting["l2cpu_harvesting_mask"] = 0
    board_id = {"n150": 72059269368820857, "p100": 4613626507328, "p150": 4402341478400}[system]
    description = {
        "arch": {0: "wormhole_b0" if wormhole else "blackhole"},
        "chips": {0: [0, 0, 0, 0]} if wormhole else {},
        "ethernet_connections": [],
        "ethernet_connections_to_remote_devices": [],
        "chips_with_mmio": [{0: 0}],
        "harvesting": {0: harvesting},
        "boards": [[{"board_id": board_id}, {"board_type": system}, {"chips": [0]}]],
    }
    if not wormhole:
        description |= {
            "chip_unique_ids": {0: 4476187513037},
            "chip_to_bus_id": {0: "0x01"},
            "asic_locations": {0: 0},
            "io_device_type": "PCIe",
        }
    return description


def _write_runtime_root(wheel: Path, root: Path) -> None:
    compiler = root / "runtime/sfpi/compiler/bin/riscv-tt-elf-g++"
    compiler.parent.mkdir(parents=True)
    (root / "ttnn").symlink_to(wheel / "ttnn")
    (root / "tt_metal").symlink_to(wheel / "tt_metal")
    (root / "runtime/hw").symlink_to(wheel / "runtime/hw")
    program = root / "runtime/return.elf"
    program.write_bytes(_program())
    compiler.write_text(_COMPILER.format(program=program))
    compiler.chmod(0o755)


# Answers for its version, writes the dependency file asked for, and makes every linked program the same one.
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
  ?*) cat "{program}" > "$output" ;;
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
