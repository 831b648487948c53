"""Every system opens on TT-NN's mock device, works, leaves nothing behind, and tells how it failed."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier

import pytest

from tt_flux_kontext.planner.mock_device import MockError, run
from tt_flux_kontext.planner.systems import SYSTEMS

CHILD = "tests.mock.open_system"
RINGS = ("galaxy",)  # has cables that close the rows and columns of its mesh

#               mesh    grid      DRAM bytes
WORMHOLE = {
    "n150": ((1, 1), (8, 8), 12_872_318_208),
    "n300": ((1, 2), (8, 8), 12_872_318_208),
    "t3k": ((2, 4), (8, 8), 12_872_318_208),
    "galaxy": ((8, 4), (8, 9), 12_872_318_208),
}
BLACKHOLE = {
    "p100": ((1, 1), (11, 10), 29_939_989_632),
    "p150": ((1, 1), (11, 10), 34_217_131_008),
    "p300": ((1, 2), (11, 10), 34_217_131_008),
    "p150x4": ((2, 2), (11, 10), 34_217_131_008),
}


@pytest.fixture(scope="module", autouse=True)
def alone(background):
    """Nothing in the background, which has temporary files too."""
    both = Barrier(2)
    wait([background.submit(both.wait) for _ in range(2)])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Iterator[None]:
    """One empty folder as home, working directory and place of temporary files; it must be empty in the end too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # looks at TMPDIR again
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


def start(system: str, end: str | None = None) -> Iterator[dict]:
    return run(system, CHILD, {"mesh_shape": SYSTEMS[system].mesh_shape, "ring": system in RINGS, "end": end})


def expected(system: str) -> dict:
    arch = "wormhole_b0" if system in WORMHOLE else "blackhole"
    (rows, columns), grid, dram = (WORMHOLE | BLACKHOLE)[system]
    return {
        "mesh shape": [rows, columns],
        "chips": rows * columns,
        "arch": arch,
        "grid": list(grid),
        "dram": dram,
        "linear": [2048, 2048],
        "gathered": [[2048, 2048 * chips] for chips in (rows, columns) if chips > 1],
    }


def test_all_are_tested():
    assert SYSTEMS.keys() == WORMHOLE.keys() | BLACKHOLE.keys()


def test_many_chips_open_and_work():
    systems = [name for name, system in SYSTEMS.items() if system.mesh_shape != (1, 1)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        answers = dict(zip(systems, pool.map(lambda system: list(start(system)), systems)))
    assert answers == {system: [expected(system)] for system in systems}


# The single chips also fail, each in its own way: a process with TT-NN takes seconds to start.
@pytest.mark.parametrize(
    "system,end,message",
    [
        ("n150", "Python error", "n150, after the call ttnn.get_memory_view: Traceback(?s:.)*ZeroDivisionError"),
        ("p100", "TT_FATAL", "p100, in the call ttnn.matmul: .*TT_FATAL(?s:.)*Mismatch: width=64 height=32"),
        ("p150", "crash", "p150, in the call ttnn.gelu: died of SIGSEGV(?s:.)*open_system.py"),
    ],
    ids=["n150", "p100", "p150"],
)
def test_opens_works_and_fails(system, end, message, capfd):
    child = start(system, end)
    assert next(child) == expected(system)
    with pytest.raises(MockError, match=message):
        next(child)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("interrupt", [GeneratorExit, KeyboardInterrupt])
def test_no_process_outlives_its_caller(interrupt, tmp_path_factory, monkeypatch):
    modules = tmp_path_factory.mktemp("modules")
    (modules / "hangs.py").write_text(
        "import os, time; print('{\"pid\":', os.getpid(), '}', flush=True); time.sleep(600)"
    )
    monkeypatch.syspath_prepend(modules)
    child = run("n150", "hangs", None)
    process = next(child)["pid"]
    with pytest.raises(interrupt):
        child.throw(interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_unknown_system():
    with pytest.raises(ValueError, match="'n151': it is one of n150, n300"):
        next(run("n151", CHILD, None))
