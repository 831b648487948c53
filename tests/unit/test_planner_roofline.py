"""The planner's model of time, on one chip and on meshes."""

import math
from dataclasses import replace

import pytest

from tests.unit.test_planner_operations import operation, place, ring_attention
from tt_flux_kontext.mesh import System
from tt_flux_kontext.planner import roofline
from tt_flux_kontext.planner.roofline import CHIPS, Chip, Time, calibration, time, upload_time
from tt_flux_kontext.planner.systems import SINGLE_CHIP, SYSTEMS

MESH = Chip(8, 8, clock=1e9, bandwidth=288e9, mesh=System(((1, 8),), rings=(8,), links=2), link_bandwidth=12.5e9)
ALONE = replace(MESH, mesh=System())
PEAK = 64 * 1e9 * 4096 / 2  # FLOP a second in HiFi2


def product(rows: int, inner: int, columns: int):
    return operation(
        "MinimalMatmulDeviceOperation", [place(rows, inner), place(inner, columns)], [place(rows, columns)]
    )


def gather(chips: int):
    return operation("AllGatherDeviceOperation", [place(1024, 1024)], [place(1024, 1024 * chips)])


def test_every_system_has_its_chips():
    assert CHIPS.keys() == SYSTEMS.keys()
    assert {name for name, chip in CHIPS.items() if chip.alone} == set(SINGLE_CHIP)


def test_gathers_wait_for_their_links():
    """Of a line's end all others' parts come through the links of one side, of a ring through both."""
    a_part = 2 * 2**20 / (2 * 12.5e9 * 0.6)
    for chips, parts in ((2, 1), (4, 3), (8, 3.5)):
        expected = 15e-6 + parts * a_part
        assert time([gather(chips)], MESH) == Time(pytest.approx(expected), pytest.approx(expected))


def test_attention_hides_the_shorter_of_arithmetic_and_transfer():
    chips, rows, mesh = 8, 1024, replace(MESH, link_bandwidth=25e9)
    arithmetic = 4 * 6 * 128 * rows * chips * rows / (PEAK * 0.4)
    arithmetic *= 64 / 48  # 6 x 8 chunks of queries, each on a core of the 56 that multiply
    transfer = 2 * 7 * 6 * rows * 128 * 2 / (2 * 2 * 25e9 * 0.6)
    assert arithmetic > transfer
    found = time([ring_attention(chips, rows)], mesh)
    assert found == Time(pytest.approx(15e-6 + arithmetic), pytest.approx(15e-6))
    slow = time([ring_attention(chips, rows)], replace(mesh, link_bandwidth=2.5e9))
    assert slow.seconds == pytest.approx(15e-6 + 10 * transfer)
    assert slow.communication == pytest.approx(slow.seconds - arithmetic)


def attention(rows: int, heads: int = 24, name: str = "SDPAOperation", sequences: int = 1):
    return operation(name, [place(1, heads, rows, 128)] * 3 * sequences, [place(1, heads, rows, 128)] * sequences)


@pytest.mark.parametrize(
    "found,rounds",
    [
        (attention(rows=512), 2),  # 96 chunks of queries for 64 cores
        (attention(rows=1024), 3),
        (attention(rows=512, name="JointSDPADeviceOperation", sequences=2), 4),  # 8 chunks for a head's two cores
    ],
)
def test_cores_attend_with_chunks_of_queries(found, rounds):
    keys = sum(key.shape[2] for key in found.keys)
    arithmetic = rounds * 128 * 4 * 128 * keys / (PEAK / 64 * 0.4)
    assert time([found], replace(ALONE, bandwidth=1e15)).seconds == pytest.approx(5e-6 + arithmetic)
    once, again = found.dram_bytes, (rounds - 1) * 2 * 24 * keys * 128 * 2
    slow_memory = replace(ALONE, bandwidth=1e9)
    assert time([found], slow_memory).seconds == pytest.approx(5e-6 + (once + again) / (1e9 * 0.7))


@pytest.mark.parametrize(
    "rows,columns,lost",
    [
        (8 * 32, 16 * 32, 1),  # a tile by two on each core
        (9 * 32, 16 * 32, 16 / 9),  # two by two on some
        (8 * 32 - 16, 16 * 32, 256 / 240),  # half of the last tile is padding
        (32, 64 * 32, 8),  # one row of tiles, over the rows or over the columns of cores
    ],
)
def test_meshes_work_in_whole_tiles(rows, columns, lost):
    arithmetic = 2 * rows * 2**14 * columns / (PEAK * 0.4)
    fast_memory = replace(MESH, bandwidth=1e15)
    assert time([product(rows, 2**14, columns)], fast_memory).seconds == pytest.approx(5e-6 + lost * arithmetic)
    alone = time([product(rows, 2**14, columns)], replace(fast_memory, mesh=System()))
    assert alone == Time(pytest.approx(5e-6 + arithmetic), 0)


def test_one_chip_takes_arithmetic_or_memory():
    assert time([product(32, 32, 32)] * 3, ALONE).seconds == pytest.approx(3 * (5e-6 + 3 * 2048 / (288e9 * 0.7)))
    assert time([], ALONE) == Time(0, 0)


def test_uploads_take_the_host_or_the_lanes():
    """Whichever is slower: the host serves all chips, lanes those that are behind them."""
    assert upload_time(128 * 10**9, replace(ALONE, pcie=1e15)) == pytest.approx(10)
    assert upload_time(128 * 10**9, replace(MESH, pcie=1e15)) == pytest.approx(80)
    assert upload_time(10**9, replace(MESH, pcie=2e9)) == pytest.approx(8 / 12.8)
    assert upload_time(10**9, replace(MESH, pcie=1e9, behind=2)) == pytest.approx(2 / 0.8)
    assert upload_time(0, MESH) == 0


def test_chips_without_pcie_are_behind_others():
    for name, system in SYSTEMS.items():
        assert CHIPS[name].behind >= math.prod(system.mesh_shape) / len(system.host)


def test_what_is_printed_says_how_far_off_it_is(monkeypatch):
    monkeypatch.setattr(roofline, "MESHES", (roofline.Figure("T3K", measured=2.0, modelled=1.0),))
    assert "SDXL UNet, 1024 x 1024 -6 %" in calibration(mesh=False) and "T3K" not in calibration(mesh=False)
    assert "T3K -50 %" in calibration(mesh=True)
