"""Every system opens on TT-NN's mock device, works, leaves nothing behind, and tells how it failed."""

import math
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier

import pytest

from tt_flux_kontext.planner.mock_device import MockError, run
from tt_flux_kontext.planner.roofline import CHIPS, Chip
from tt_flux_kontext.planner.systems import SYSTEMS

CHILD = "tests.mock.open_system"
OTHER_MESHES = (("t3k", (1, 8)), ("p150x4", (1, 4)))  # their chips one after the other, the last beside the first

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


def start(system: str, mesh_shape: tuple[int, int], end: str | None = None) -> Iterator[dict]:
    ring = any(length in CHIPS[system].mesh.rings for length in mesh_shape)
    return run(system, CHILD, {"mesh_shape": mesh_shape, "ring": ring, "end": end})


def expected(system: str, mesh_shape: tuple[int, int]) -> dict:
    _, grid, dram = (WORMHOLE | BLACKHOLE)[system]
    return {
        "mesh shape": list(mesh_shape),
        "chips": math.prod(SYSTEMS[system].mesh_shape),
        "arch": "wormhole_b0" if system in WORMHOLE else "blackhole",
        "grid": list(grid),
        "dram": dram,
        "linear": [2048, 2048],
        "axes": [collectives(CHIPS[system], chips) for chips in mesh_shape if chips > 1],
    }


def collectives(chip: Chip, chips: int) -> dict:
    """Along an axis, with the links and rings that the planner's model of time has."""
    whole = 2048 * 2048 * 2
    return {
        "gathered": [2048, 2048 * chips],
        "reduced": [2048, 2048],
        "exchanged": [
            ["AllGatherDeviceOperation", chips, (chips - 1) * whole],
            ["ReduceScatterDeviceOperation", chips, (chips - 1) * whole // chips],
            ["AllGatherDeviceOperation", chips, (chips - 1) * whole // chips],
        ],
        "links": chip.mesh.links,
        "topology": "Topology::Ring" if chips in chip.mesh.rings else "Topology::Linear",
    }


def test_all_are_tested():
    assert SYSTEMS.keys() == WORMHOLE.keys() | BLACKHOLE.keys()
    for name, (mesh_shape, grid, _) in (WORMHOLE | BLACKHOLE).items():
        assert SYSTEMS[name].mesh_shape == mesh_shape
        assert (CHIPS[name].columns, CHIPS[name].rows) == grid


def test_many_chips_open_and_work():
    meshes = [(name, system.mesh_shape) for name, system in SYSTEMS.items() if system.mesh_shape != (1, 1)]
    meshes += OTHER_MESHES
    with ThreadPoolExecutor(max_workers=2) as pool:
        answers = pool.map(lambda mesh: list(start(*mesh)), meshes)
    assert dict(zip(meshes, answers)) == {mesh: [expected(*mesh)] for mesh in meshes}


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
    child = start(system, (1, 1), end)
    assert next(child) == expected(system, (1, 1))
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
