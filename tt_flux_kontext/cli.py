"""tt-flux-kontext plan: what an edit takes on a Tenstorrent system, without one."""

import argparse
import json
import sys

from tqdm import tqdm

from tt_flux_kontext.planner.plan import SEVERAL_EDITS, Plan, Request, Split, plan_all
from tt_flux_kontext.planner.roofline import calibration
from tt_flux_kontext.planner.systems import SINGLE_CHIP, SYSTEMS
from tt_flux_kontext.planner.tables import comparison, table
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
    which.add_argument("--system", choices=SYSTEMS, default="n150")
    which.add_argument("--all-systems", action="store_true", help="each with one edit over all chips, and with several")
    add.add_argument(
        "--split",
        type=_split,
        metavar="SP,TP",
        help="chips over which an edit's tokens and features are split; fewer than there are: several edits at a time "
        "(default: all chips)",
    )
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

    if arguments.all_systems and arguments.split:
        parser.error("--split is of one --system")

    size = arguments.height, arguments.width
    request = Request(
        size=size,
        reference=None if arguments.text_to_image else size,
        precision=arguments.precision,
        steps=arguments.steps,
    )
    jobs = [(arguments.system, arguments.split)]
    if arguments.all_systems:
        jobs = [(system, None) for system in SYSTEMS] + list(SEVERAL_EDITS.items())
    try:
        with tqdm(total=PHASES * len(jobs), desc="TT-NN's mock device", leave=False, disable=None) as bar:
            plans = plan_all(jobs, request, bar.update)
    except (ValueError, RuntimeError) as error:
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
    if len(plans) > 1:
        print(comparison(plans), end="\n\n")
    print(calibration(mesh=any(plan.system not in SINGLE_CHIP for plan in plans)))


def _split(text: str) -> Split:
    try:
        sp, tp = (int(part) for part in text.split(","))
    except ValueError:
        sp = tp = 0
    if sp < 1 or tp < 1:
        raise argparse.ArgumentTypeError(f"two numbers of chips, such as 4,2, not '{text}'")
    return sp, tp


if __name__ == "__main__":
    main()
