"""Tenstorrent's systems as tables of chips and cables, and their descriptions for TT-NN's mock device."""

from collections.abc import Iterator
from dataclasses import dataclass

WORMHOLE, BLACKHOLE = "wormhole_b0", "blackhole"
Layout = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Off:
    """What is switched off on a chip, as masks: bit i stands for the i-th unit of its kind.

    Cards are sold with some rows (Wormhole) or columns (Blackhole) of Tensix cores off. Their number makes the grid;
    which ones they are differs from chip to chip, and doesn't matter here. A DRAM bank that is off is memory missing.
    """

    tensix: int = 0
    dram: int = 0
    ethernet: int = 0


@dataclass(frozen=True)
class Cable:
    """Ethernet links between two chips, `width` of them: channel `at + i` to channel `other_at + i`."""

    chip: int
    at: int
    other: int
    other_at: int
    width: int


@dataclass(frozen=True)
class System:
    """A machine.

    Args:
        arch: WORMHOLE or BLACKHOLE.
        board: a name in _PRODUCTS.
        layout: the numbers of the chips, at their places in the mesh.
        boards: the chips of each board.
        host: the chips on PCIe, slot by slot; the host reaches the others through these.
        off: what each chip has switched off.
        cables: between its chips.
        bus_ids: PCIe addresses of the chips, where they tell the place in the machine.
    """

    arch: str
    board: str
    off: Off
    layout: Layout = ((0,),)
    boards: Layout = ((0,),)
    host: tuple[int, ...] = (0,)
    cables: tuple[Cable, ...] = ()
    bus_ids: tuple[int, ...] = ()

    @property
    def mesh_shape(self) -> tuple[int, int]:
        """(rows, columns) of the mesh of all chips."""
        return len(self.layout), len(self.layout[0])


# What the driver (UMD) knows a board by: bits 36 up of its serial number.
_PRODUCTS = {"n150": 0x18, "n300": 0x14, "ubb": 0x35, "p100": 0x43, "p150": 0x40, "p300": 0x45}

_N150_OFF = Off(tensix=0b1000000)
_N300_OFF = Off(tensix=0b1000001)
_P100_OFF = Off(tensix=0b11000000, dram=0b1000, ethernet=0b11111111111111)
_P150_OFF = Off(tensix=0b11000000, ethernet=0b100100000)

# Four N300; the chips on PCIe, 0 to 3, are in the middle.
_T3K = (
    (4, 0, 2, 6),
    (5, 1, 3, 7),
)
_T3K_CABLES = (
    # Along the rows: on a board, between boards, on a board.
    *(Cable(0, 8, 4, 0, 2), Cable(0, 6, 2, 6, 2), Cable(2, 8, 6, 0, 2)),
    *(Cable(1, 8, 5, 0, 2), Cable(1, 0, 3, 0, 2), Cable(3, 8, 7, 0, 2)),
    # Down the columns.
    *(Cable(4, 6, 5, 6, 2), Cable(0, 14, 1, 14, 2), Cable(2, 14, 3, 14, 2), Cable(6, 6, 7, 6, 2)),
)

# Four trays of eight chips, a tray in each quarter: chip i is number i // 4 on tray i % 4.
_GALAXY = (
    (0, 16, 18, 2),
    (4, 20, 22, 6),
    (8, 24, 26, 10),
    (12, 28, 30, 14),
    (13, 29, 31, 15),
    (9, 25, 27, 11),
    (5, 21, 23, 7),
    (1, 17, 19, 3),
)
_GALAXY_BUS = (0xC0, 0x40, 0x00, 0x80)  # of each tray


def _torus(layout: Layout) -> Iterator[Cable]:
    """From each chip to the next one in its row and column, and from the last one to the first one."""
    rows, columns = len(layout), len(layout[0])
    for i in range(rows):
        for j in range(columns):
            yield Cable(layout[i][j], 12, layout[i][(j + 1) % columns], 0, width=4)
            yield Cable(layout[i][j], 8, layout[(i + 1) % rows][j], 4, width=4)


SYSTEMS = {
    "n150": System(WORMHOLE, "n150", _N150_OFF),
    "n300": System(WORMHOLE, "n300", _N300_OFF, ((0, 1),), ((0, 1),), cables=(Cable(0, 8, 1, 0, 2),)),
    "t3k": System(
        WORMHOLE,
        "n300",
        _N300_OFF,
        layout=_T3K,
        boards=((0, 4), (1, 5), (2, 6), (3, 7)),
        host=(0, 1, 2, 3),
        cables=_T3K_CABLES,
    ),
    "galaxy": System(
        WORMHOLE,
        "ubb",
        Off(),
        layout=_GALAXY,
        boards=(tuple(range(32)),),
        host=tuple(range(32)),
        cables=tuple(_torus(_GALAXY)),
        bus_ids=tuple(_GALAXY_BUS[i % 4] + i // 4 + 1 for i in range(32)),
    ),
    "p100": System(BLACKHOLE, "p100", _P100_OFF),
    "p150": System(BLACKHOLE, "p150", _P150_OFF),
    "p300": System(
        BLACKHOLE,
        "p300",
        Off(tensix=0b100010000, ethernet=0b100100000),
        layout=((0, 1),),
        boards=((0, 1),),
        host=(0, 1),
        cables=(Cable(0, 2, 1, 9, 1), Cable(0, 3, 1, 8, 1)),  # crossed
    ),
    "p150x4": System(
        BLACKHOLE,
        "p150",
        _P150_OFF,
        layout=((0, 2), (3, 1)),
        boards=((0,), (1,), (2,), (3,)),
        host=(0, 1, 2, 3),
        cables=(Cable(0, 4, 2, 4, 4), Cable(0, 8, 3, 8, 4), Cable(1, 4, 3, 4, 4), Cable(1, 8, 2, 8, 4)),
    ),
}
SINGLE_CHIP = tuple(name for name, system in SYSTEMS.items() if system.mesh_shape == (1, 1))


def cluster_description(system: System) -> dict:
    """The system in the words of UMD, the driver under TT-NN, whose mock of a system is made from such a description.

    Serial numbers are made up; what a board is called and the upper bits of its number have to fit each other.
    """
    places = {chip: place for board in system.boards for place, chip in enumerate(board)}
    chips = sorted(places)
    description = {
        "arch": {chip: system.arch for chip in chips},
        "chips": {},
        "chip_unique_ids": {chip: 1000 + chip for chip in chips},
        "chips_with_mmio": [{chip: slot} for slot, chip in enumerate(system.host)],
        "ethernet_connections": [
            [{"chip": cable.chip, "chan": cable.at + i}, {"chip": cable.other, "chan": cable.other_at + i}]
            for cable in system.cables
            for i in range(cable.width)
        ],
        "ethernet_connections_to_remote_devices": [],
        "harvesting": {chip: _harvesting(system, places[chip]) for chip in chips},
        "boards": [
            [{"board_id": _PRODUCTS[system.board] << 36 | i}, {"board_type": system.board}, {"chips": list(board)}]
            for i, board in enumerate(system.boards)
        ],
    }
    if system.board in ("n150", "n300"):  # their chips know where in the mesh they are: x, y, and two more for racks
        grid = enumerate(system.layout)
        description["chips"] = {chip: [x, y, 0, 0] for y, row in grid for x, chip in enumerate(row)}
    if system.arch == BLACKHOLE:
        description["asic_locations"] = places
    if system.bus_ids:
        description["chip_to_bus_id"] = {chip: f"0x{bus:04x}" for chip, bus in enumerate(system.bus_ids)}
    return description


def _harvesting(system: System, place: int) -> dict:
    """What is off on the chip at that place of its board."""
    off = system.off
    masks = {
        "noc_translation": True,
        "harvest_mask": off.tensix,
        "dram_harvesting_mask": off.dram,
        "eth_harvesting_mask": off.ethernet,
        "pcie_harvesting_mask": 0,
    }
    if system.arch == BLACKHOLE:  # has two PCIe cores; a board wires one, of its second chip the other one
        masks |= {"pcie_harvesting_mask": 0b10 if place == 0 else 0b01, "l2cpu_harvesting_mask": 0}
    return masks
