"""tt-flux-kontext plan: what an edit takes on a Tenstorrent system, without one."""

import argparse
import json
import sys

from tqdm import tqdm

from tt_flux_kontext.planner.plan import Plan, Request, plan_systems, table
from tt_flux_kontext.planner.roofline import calibration
from tt_flux_kontext.planner.systems import SINGLE_CHIP
from tt_flux_kontext.precision import PRECISIONS

PHASES = 9  # lines of progress for a plan


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tt-flux-kontext")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser(
        "plan",
        help="memory, operations and modelled time of an edit, asked of real TT-NN without a card",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    which = add.add_mutually_exclusive_group()
    which.add_argument("--system", choices=SINGLE_CHIP, default="n150")
    which.add_argument("--all-systems", action="store_true", help="every system with one chip")
    add.add_argument("--width", type=int, default=1024, help="of the result and the reference, in pixels")
    add.add_argument("--height", type=int, default=1024, help="of the result and the reference, in pixels")
    add.add_argument("--text-to-image", action="store_true", help="no reference")
    add.add_argument("--steps", type=int, default=28)
    add.add_argument("--precision", choices=PRECISIONS, help="default: the most accurate one that fits")
    add.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    for name in ("width", "height"):
        if getattr(arguments, name) < 16 or getattr(arguments, name) % 16:
            parser.error(f"--{name} must be a multiple of 16, not {getattr(arguments, name)}")
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, not {arguments.steps}")

    size = arguments.height, arguments.width
    request = Request(
        size=size,
        reference=None if arguments.text_to_image else size,
        precision=arguments.precision,
        steps=arguments.steps,
    )
    systems = SINGLE_CHIP if arguments.all_systems else (arguments.system,)
    try:
        with tqdm(total=PHASES * len(systems), desc="TT-NN's mock device", leave=False, disable=None) as bar:
            plans = plan_systems(systems, request, bar.update)
    except RuntimeError as error:
        sys.exit(str(error))
    _print(plans, as_json=arguments.json)
    if any(plan.refused for plan in plans):
        sys.exit(1)


def _print(plans: list[Plan], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([plan.as_dict() for plan in plans], indent=2))
        return
    for plan in plans:
        print(table(plan), end="\n\n")
    print(calibration())


if __name__ == "__main__":
    main()
