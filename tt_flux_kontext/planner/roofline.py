"""A model of time: every operation takes as long as its arithmetic, its memory traffic or what it moves between chips,
whichever is longest.

Not measured on any card by this project. The efficiencies are chosen so that public figures of another model on one
N150 come out right; `CALIBRATION` says how nearly they do, `MESHES` how the model does on several chips, and whoever
prints a modelled time prints that too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tt_flux_kontext.mesh import SYSTEMS, System
from tt_flux_kontext.planner.operations import (
    GATHER_MATMUL,
    JOINT_ATTENTION,
    MATMUL_SCATTER,
    RING_ATTENTION,
    TILE,
    Operation,
)
from tt_flux_kontext.program_configs import LEAST_QUERIES, attention_chunks, attention_rounds

# Bytes a second of an Ethernet link, each way, as TT-NN's own model of its collectives has them (`ccl_common.cpp`). For
# Blackhole that is half of the product pages' 400 Gb/s, "currently".
WORMHOLE_LINK, BLACKHOLE_LINK = 12.5e9, 25e9

# Bytes a second of a lane. Cards have 16, of the 4th generation on Wormhole and the 5th on Blackhole (product pages).
PCIE_4, PCIE_5 = 1.97e9, 3.94e9


@dataclass(frozen=True)
class Chip:
    """A chip, alone or in a mesh.

    Attributes:
        columns, rows: of the cores that TT-NN gives to programs.
        clock: theirs, in Hz.
        bandwidth: of DRAM, in bytes a second.
        mesh: what it is part of.
        link_bandwidth: of an Ethernet link, in bytes a second each way.
        pcie: bandwidth of its lanes to the host, in bytes a second.
        behind: chips that the host reaches over these lanes.
    """

    columns: int
    rows: int
    clock: float
    bandwidth: float
    mesh: System = System()
    link_bandwidth: float = WORMHOLE_LINK
    pcie: float = 16 * PCIE_4
    behind: int = 1

    @property
    def cores(self) -> int:
        return self.columns * self.rows

    @property
    def alone(self) -> bool:
        return self.mesh == System()


_WORMHOLE = Chip(8, 8, clock=1.0e9, bandwidth=288e9)
_BLACKHOLE = Chip(11, 10, clock=1.35e9, bandwidth=512e9, link_bandwidth=BLACKHOLE_LINK, pcie=16 * PCIE_5)

# Grids: `device.compute_with_storage_grid_size()` of TT-NN 0.81.1. Clock and bandwidth: Tenstorrent's product pages. An
# N300's second chip has no PCIe; a P300's chips are taken to share the lanes; most of a Galaxy's have a single one, as
# those of the Blackhole Galaxy (tt-metal issue 40832).
CHIPS = {
    "n150": _WORMHOLE,
    "n300": replace(_WORMHOLE, mesh=SYSTEMS["N300"], behind=2),
    "t3k": replace(_WORMHOLE, mesh=SYSTEMS["T3K"], behind=2),
    "galaxy": replace(_WORMHOLE, rows=9, mesh=SYSTEMS["GALAXY"], pcie=PCIE_4),
    "p100": replace(_BLACKHOLE, bandwidth=448e9),
    "p150": _BLACKHOLE,
    "p300": replace(_BLACKHOLE, mesh=SYSTEMS["P300"], behind=2),
    "p150x4": replace(_BLACKHOLE, mesh=SYSTEMS["P150_X4"]),
}

# A Tensix core multiplies 8 x 16 by 16 x 16 in a cycle, once for each phase of the fidelity.
FLOP_PER_CYCLE = 2 * 8 * 16 * 16
PHASES = {"LoFi": 1, "HiFi2": 2, "HiFi3": 3, "HiFi4": 4}

# Shares of the peak that are reached. The first two follow from CALIBRATION, given the assumptions: that attention does
# as well as matrix products, that DRAM gives 70 % of its bandwidth, and what a launch costs.
EFFICIENCY = {"convolution": 0.155, "matmul": 0.40, "attention": 0.40}
DRAM_EFFICIENCY = 0.70
LAUNCH = 5e-6  # seconds from the end of one operation to the start of the next, dispatched ahead; assumed

# Assumed too. In the field gathers reach half of their links' bandwidth (tt-metal issue 35952), small ones a quarter
# (47803), and take 54 microseconds for [768, 256] over eight chips (48197).
LINK_EFFICIENCY = 0.60
COLLECTIVE = 15e-6  # instead of LAUNCH, where chips wait for each other

# Uploads. A card reads what the host has copied for it, and one thread copies for all chips in turn (tt-metal issues
# 40832 and 52756). By TT-NN's own benchmark that gives 12.8 GB/s in pages of 1 KB, such as a tile of bfloat8_b, and 15
# GB/s in pages of 2 KB (pull request 25791, of a machine that isn't named); in 2024 it was 3.9 GB/s on a Wormhole
# (7759). A lane gave 1.62 GB/s of 1.97 (57293).
HOST_COPY = 12.8e9
PCIE_EFFICIENCY = 0.80

# Rows of cores that move data while the others multiply.
MOVING_ROWS = {RING_ATTENTION: 1, GATHER_MATMUL: 1, MATMUL_SCATTER: 2}


@dataclass(frozen=True)
class Figure:
    """A public measurement, and what this model says, in seconds."""

    what: str
    measured: float
    modelled: float

    @property
    def error(self) -> float:
        return self.modelled / self.measured - 1


def _unet() -> float:
    """SDXL's UNet, one pass at 1024 x 1024: FLOP of torch's counter, taken to be bound by arithmetic alone."""
    chip = CHIPS["n150"]
    peak = chip.cores * chip.clock * FLOP_PER_CYCLE / PHASES["HiFi2"]
    return 1.623e12 / (peak * EFFICIENCY["convolution"]) + 5.138e12 / (peak * EFFICIENCY["matmul"])


# Stable Diffusion XL in Tenstorrent's tt-metal on an N150. Its VAE has the stages of Flux's, so that the modelled
# times are those of this project's VAE as it is there, with HiFi2 and maps in bfloat16; a test derives them anew. And
# the attention of two sequences, 4096 and 333 rows of 24 heads, on a P100 (tt-metal pull request 56930).
CALIBRATION = (
    Figure("SDXL UNet, 1024 x 1024", 0.190, _unet()),
    Figure("VAE encode, 1024 x 1024", 0.324, 0.310),
    Figure("VAE decode, 1024 x 1024", 0.663, 0.656),
    Figure("joint attention", 2224e-6, 2367e-6),
)

# A step of FLUX.1 from text in tt-metal's tt_dit, 1024 x 1024, with the operations that it has there, but attention's
# chunks as they are chosen here; a test derives what is modelled. Measured: `Flux1.md`'s seconds for 28 steps, less 1.9
# and 1.7 that its test allows for the rest.
MESHES = (
    Figure("T3K", (21.6 - 1.9) / 28, 0.568),
    Figure("Galaxy", (8.0 - 1.7) / 28, 0.159),
)
# Of Blackhole nothing is public but what `test_performance_flux1.py` takes for too slow.
MESH_LIMITS = (
    Figure("P300", 1.1, 0.567),
    Figure("2 x 2 P150", 0.55, 0.347),
    Figure("2 x 4 P150", 0.38, 0.229),
)


@dataclass(frozen=True)
class Time:
    """Modelled seconds, and how many of them are communication: transfers that no arithmetic hides."""

    seconds: float
    communication: float


def upload_time(size: int, chip: Chip) -> float:
    """Modelled seconds until every chip of the system has got so many bytes from the host."""
    chips = math.prod(chip.mesh.meshes[0])
    return max(chips * size / HOST_COPY, chip.behind * size / (chip.pcie * PCIE_EFFICIENCY))


def time(operations: Sequence[Operation], chip: Chip) -> Time:
    """Modelled time of the operations, one after the other, which all chips of a mesh run side by side."""
    total = communication = 0.0
    for operation in operations:
        arithmetic = 0.0
        if operation.flop:
            peak = chip.cores * chip.clock * FLOP_PER_CYCLE / PHASES[operation.fidelity]
            arithmetic = operation.flop / (peak * EFFICIENCY[operation.kind] * _busy(operation, chip))
        traffic = operation.dram_bytes + _read_again(operation, chip)
        work = max(arithmetic, traffic / (chip.bandwidth * DRAM_EFFICIENCY))
        if operation.chips == 1:
            total += LAUNCH + work
            continue
        sides = 2 if operation.chips in chip.mesh.rings else 1
        links = sides * chip.mesh.links
        transfer = operation.link_bytes / (links * chip.link_bandwidth * LINK_EFFICIENCY)
        seconds = COLLECTIVE + max(work, transfer)
        total += seconds
        communication += seconds if operation.only_moves else seconds - work
    return Time(total, communication)


def _busy(operation: Operation, chip: Chip) -> float:
    """The share of the cores' work that counts, since each takes whole tiles, or chunks of queries.

    Of a product on one chip that is a matter of a few percent, which the efficiency includes: it is of such work. The
    less a chip of a mesh has to do, the more of its cores wait for the others.
    """
    if operation.kind == "attention":
        _, rows = _attention(operation, chip)
        return sum(math.prod(query.shape[:3]) for query in operation.queries) / (rows * chip.cores)
    if chip.alone or operation.kind == "convolution":
        return 1.0
    rows, columns = chip.rows - MOVING_ROWS.get(operation.name, 0), chip.columns
    grids = [(rows, columns), (columns, rows)]
    if operation.name == "MatmulDeviceOperation":  # may deal out columns to all cores
        grids.append((1, rows * columns))
    height, width = operation.products[0].tiles[0], sum(out.tiles[1] for out in operation.products)
    done = min(math.ceil(height / down) * math.ceil(width / across) for down, across in grids) * TILE**2
    return sum(math.prod(out.shape) for out in operation.products) / (done * chip.cores)


def _read_again(operation: Operation, chip: Chip) -> int:
    """Bytes of keys and values that attention reads besides the first time.

    The cores of a head pass them on to each other, and start again for each core's next chunk of queries.
    """
    if operation.kind != "attention":
        return 0
    rounds, _ = _attention(operation, chip)
    return (rounds - 1) * 2 * sum(key.bytes for key in operation.keys)


def _attention(operation: Operation, chip: Chip) -> tuple[int, int]:
    """Chunks of queries of the core that has most, and the rows in whose time it is done with them."""
    batch, heads, _, head_dim = operation.queries[0].shape
    heads, lengths = batch * heads, [query.shape[2] for query in operation.queries]
    cores = chip.columns * (chip.rows - MOVING_ROWS.get(operation.name, 0))
    queries, _ = attention_chunks(head_dim, heads, lengths, cores)
    if operation.name == JOINT_ATTENTION:  # gives each head as many cores as each can have
        heads, cores = 1, cores // heads
    rounds = attention_rounds(queries, heads, lengths, cores)
    return rounds, rounds * max(queries, LEAST_QUERIES)


def calibration(mesh: bool) -> str:
    """One line: how far the model is off public figures of one chip, and of meshes if it is about one."""
    line = (
        "Times are modelled, not measured. The model against public figures of one chip, taken for HiFi2: "
        f"{_errors(CALIBRATION)}."
    )
    if mesh:
        line += (
            f" Against a step of FLUX.1 as tt-metal's tt_dit has it, 1024 x 1024 from text: {_errors(MESHES)}; against "
            f"the longest that its tests let pass: {_errors(MESH_LIMITS)}."
        )
    return line


def _errors(figures: Sequence[Figure]) -> str:
    return ", ".join(f"{figure.what} {100 * figure.error:+.0f} %" for figure in figures)
