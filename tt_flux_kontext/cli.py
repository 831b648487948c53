"""tt-flux-kontext plan: what an edit takes on a Tenstorrent system, without one."""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from tt_flux_kontext.planner import report
from tt_flux_kontext.planner.plan import EVERYWHERE, PROGRESS, Plan, Request, Split, plan, plan_everywhere
from tt_flux_kontext.planner.roofline import calibration
from tt_flux_kontext.planner.systems import SINGLE_CHIP, SYSTEMS
from tt_flux_kontext.planner.tables import comparison, table
from tt_flux_kontext.precision import PRECISIONS


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
    chips = add.add_mutually_exclusive_group()
    chips.add_argument("--split", type=_split, metavar="SP,TP", help="chips over which tokens and features are split")
    chips.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="edits side by side, each on a part of the chips"
    )
    add.add_argument("--width", type=int, default=1024, help="of the result and each reference, in pixels")
    add.add_argument("--height", type=int, default=1024, help="of the result and each reference, in pixels")
    add.add_argument(
        "--references", type=int, default=1, metavar="N", help="the picture to edit and others; 0 for text to image"
    )
    add.add_argument("--mask", action="store_true", help="that keeps a part of the picture to edit")
    add.add_argument("--steps", type=int, default=28)
    add.add_argument("--precision", choices=PRECISIONS, help="default: the most accurate one that fits")
    add.add_argument("--json", action="store_true")
    add.add_argument("--report", type=Path, metavar="FOLDER", help=f"for {report.PICTURE} and {report.OPERATIONS}")
    arguments = parser.parse_args(argv)
    for name in ("width", "height"):
        if getattr(arguments, name) < 16 or getattr(arguments, name) % 16:
            parser.error(f"--{name} must be a multiple of 16, not {getattr(arguments, name)}")
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, not {arguments.steps}")
    if arguments.references < 0:
        parser.error(f"--references must be at least 0, not {arguments.references}")
    if arguments.mask and not arguments.references:
        parser.error("--mask is of a picture, which is a reference: it takes --references 1 or more")
    if arguments.at_once < 1:
        parser.error(f"--at-once must be at least 1, not {arguments.at_once}")
    if arguments.all_systems and (arguments.split or arguments.at_once > 1):
        parser.error("--split and --at-once are of one --system")
    if arguments.all_systems and arguments.report:
        parser.error("--report is of one --system")

    size = arguments.height, arguments.width
    request = Request(
        size=size,
        references=[size] * arguments.references,
        precision=arguments.precision,
        steps=arguments.steps,
        masked=arguments.mask,
    )
    total = PROGRESS * (len(EVERYWHERE) if arguments.all_systems else 1)
    try:
        if arguments.report:
            report.check(arguments.report)
        with tqdm(total=total, desc="TT-NN's mock device", leave=False, disable=None) as bar:
            if arguments.all_systems:
                plans = plan_everywhere(request, bar.update)
            else:
                plans = plan(arguments.system, [request], arguments.split, arguments.at_once, bar.update)
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))
    _print(plans, as_json=arguments.json)
    if arguments.report and not plans[0].refused:
        report.write(plans[0], arguments.report)
    if any(each.refused for each in plans):
        sys.exit(1)


def _print(plans: list[Plan], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([each.as_dict() for each in plans], indent=2))
        return
    for each in plans:
        print(table(each), end="\n\n")
    if len(plans) > 1:
        print(comparison(plans), end="\n\n")
    print(calibration(mesh=any(each.system not in SINGLE_CHIP for each in plans)))


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
