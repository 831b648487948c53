"""Does an edit fit a system? Real TT-NN answers, on its mock device, with the full-size FLUX.1 Kontext [dev]:

python -m tt_flux_kontext.planner.plan --system n150 --width 1024 --height 1024 --precision bfp8
"""

import argparse
import sys
from dataclasses import dataclass

from tt_flux_kontext.planner.mock_device import SYSTEMS, run
from tt_flux_kontext.precision import PRECISIONS


@dataclass(frozen=True)
class PhasePlan:
    """What the library's allocator counted: bytes of DRAM in use at most and free at least, and device operations."""

    name: str
    peak: int
    free: int
    ops: int


def plan(
    system: str,
    size: tuple[int, int],
    reference: tuple[int, int] | None,
    precision: str,
    *,
    images: int = 1,
    text_tokens: int = 512,
) -> list[PhasePlan]:
    """The phases of one edit; two of them are denoising steps, the others are as many as any edit has.

    Args:
        system: a name in `mock_device.SYSTEMS`.
        size: (height, width) of the result in pixels.
        reference: (height, width) of the picture to edit as the VAE gets it; None for text to image.
        precision: a name in `PRECISIONS`.
        images: results per prompt.
        text_tokens: of T5.

    Raises:
        MockError: it doesn't fit, or TT-NN refuses a call.
    """
    request = {
        "size": size,
        "reference": reference,
        "precision": precision,
        "images": images,
        "text_tokens": text_tokens,
    }
    return [PhasePlan(**phase) for phase in run(system, "tt_flux_kontext.planner.worker", request)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=SYSTEMS, default="n150")
    parser.add_argument("--width", type=int, default=1024, help="of the result (default: %(default)s)")
    parser.add_argument("--height", type=int, default=1024, help="of the result (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfp8")
    arguments = parser.parse_args()
    size = arguments.height, arguments.width
    try:
        phases = plan(arguments.system, size, size, arguments.precision)
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"{'phase':<22}{'peak DRAM':>12}{'free':>10}{'device ops':>12}")
    for phase in phases:
        print(f"{phase.name:<22}{phase.peak / 1e9:>9.2f} GB{phase.free / 1e9:>7.2f} GB{phase.ops:>12}")


if __name__ == "__main__":
    main()
