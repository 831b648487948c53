"""A model of time: every operation takes as long as its arithmetic or its memory traffic, whichever is longer.

Not measured on any card by this project. The efficiencies are chosen so that public figures of another model on one
N150 come out right; `CALIBRATION` says how nearly they do, and whoever prints a modelled time prints that too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tt_flux_kontext.planner.operations import Operation


@dataclass(frozen=True)
class Chip:
    """Cores that TT-NN gives to programs, their clock in Hz, and DRAM bandwidth in bytes a second."""

    cores: int
    clock: float
    bandwidth: float


# Grids: `device.compute_with_storage_grid_size()` of TT-NN 0.81.1. Clock and bandwidth: Tenstorrent's product pages.
CHIPS = {
    "n150": Chip(cores=8 * 8, clock=1.0e9, bandwidth=288e9),
    "p100": Chip(cores=11 * 10, clock=1.35e9, bandwidth=448e9),
    "p150": Chip(cores=11 * 10, clock=1.35e9, bandwidth=512e9),
}

# A Tensix core multiplies 8 x 16 by 16 x 16 in a cycle, once for each phase of the fidelity.
FLOP_PER_CYCLE = 2 * 8 * 16 * 16
PHASES = {"LoFi": 1, "HiFi2": 2, "HiFi3": 3, "HiFi4": 4}

# Shares of the peak that are reached. The first two follow from CALIBRATION, given the assumptions: that attention does
# as well as matrix products, that DRAM gives 70 % of its bandwidth, and what a launch costs.
EFFICIENCY = {"convolution": 0.155, "matmul": 0.40, "attention": 0.40}
DRAM_EFFICIENCY = 0.70
LAUNCH = 5e-6  # seconds from the end of one operation to the start of the next, dispatched ahead; assumed


@dataclass(frozen=True)
class Figure:
    """A public measurement on one N150, and what this model says, in seconds."""

    what: str
    measured: float
    modelled: float

    @property
    def error(self) -> float:
        return self.modelled / self.measured - 1


def _unet() -> float:
    """SDXL's UNet, one pass at 1024 x 1024: FLOP of torch's counter, taken to be bound by arithmetic alone."""
    peak = CHIPS["n150"].cores * CHIPS["n150"].clock * FLOP_PER_CYCLE / PHASES["HiFi2"]
    return 1.623e12 / (peak * EFFICIENCY["convolution"]) + 5.138e12 / (peak * EFFICIENCY["matmul"])


# Stable Diffusion XL in Tenstorrent's tt-metal on an N150. Its VAE has the stages of Flux's, so that the modelled
# times are those of this project's VAE as it is there, with HiFi2 and maps in bfloat16; a test derives them anew.
CALIBRATION = (
    Figure("SDXL UNet, 1024 x 1024", 0.190, _unet()),
    Figure("VAE encode, 1024 x 1024", 0.324, 0.313),
    Figure("VAE decode, 1024 x 1024", 0.663, 0.665),
)


def seconds(operations: Sequence[Operation], system: str) -> float:
    """Modelled time of the operations, one after the other, on one chip of the system."""
    chip = CHIPS[system]
    total = 0.0
    for operation in operations:
        arithmetic = 0.0
        if operation.flop:
            peak = chip.cores * chip.clock * FLOP_PER_CYCLE / PHASES[operation.fidelity]
            arithmetic = operation.flop / (peak * EFFICIENCY[operation.kind])
        memory = operation.dram_bytes / (chip.bandwidth * DRAM_EFFICIENCY)
        total += LAUNCH + max(arithmetic, memory)
    return total


def calibration() -> str:
    """One line: how far the model is off the public figures."""
    errors = ", ".join(f"{figure.what} {100 * figure.error:+.0f} %" for figure in CALIBRATION)
    return f"Times are modelled, not measured. The model against public figures of one N150, taken for HiFi2: {errors}."
