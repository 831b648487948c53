"""tt-flux-kontext plan: what an edit takes on a Tenstorrent system, without one."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tt_flux_kontext.cli.usage import DONE, FAILED, UsageError, split, whole
from tt_flux_kontext.planner.systems import SINGLE_CHIP, SYSTEMS
from tt_flux_kontext.precision import PRECISIONS

if TYPE_CHECKING:
    from tt_flux_kontext.planner.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--system", choices=SYSTEMS, default="n150")
    which.add_argument("--all-systems", action="store_true", help="each with one edit over all chips, and with several")
    chips = parser.add_mutually_exclusive_group()
    chips.add_argument("--split", type=split, metavar="SP,TP", help="chips over which tokens and features are split")
    chips.add_argument(
        "--at-once", type=whole(1), default=1, metavar="N", help="edits side by side, each on a part of the chips"
    )
    parser.add_argument("--width", type=_edge, default=1024, help="of the result and each reference, in pixels")
    parser.add_argument("--height", type=_edge, default=1024, help="of the result and each reference, in pixels")
    parser.add_argument(
        "--references",
        type=whole(0),
        default=1,
        metavar="N",
        help="the picture to edit and others; 0 for text to image",
    )
    parser.add_argument("--mask", action="store_true", help="that keeps a part of the picture to edit")
    parser.add_argument("--steps", type=whole(1), default=28)
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the most accurate one that fits")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="for a picture and a list of all operations")


def run(arguments: argparse.Namespace) -> int:
    if arguments.all_systems and (arguments.split or arguments.at_once > 1):
        raise UsageError("--split and --at-once are of one --system")
    if arguments.all_systems and arguments.report:
        raise UsageError("--report is of one --system")
    if arguments.mask and not arguments.references:
        raise UsageError("--mask is of a picture, which is a reference: it takes --references 1 or more")

    from tt_flux_kontext.planner import plan as planner
    from tt_flux_kontext.planner import report

    size = arguments.height, arguments.width
    request = planner.Request(
        size=size,
        references=[size] * arguments.references,
        precision=arguments.precision,
        steps=arguments.steps,
        masked=arguments.mask,
    )
    if arguments.report:
        report.check(arguments.report)
    total = planner.PROGRESS * (len(planner.EVERYWHERE) if arguments.all_systems else 1)
    with tqdm(total=total, desc="TT-NN's mock device", leave=False, disable=None) as bar:
        if arguments.all_systems:
            plans = planner.plan_everywhere(request, bar.update)
        else:
            plans = planner.plan(arguments.system, [request], arguments.split, arguments.at_once, bar.update)
    _print(plans, as_json=arguments.json)
    if arguments.report and not plans[0].refused:
        report.write(plans[0], arguments.report)
    return FAILED if any(each.refused for each in plans) else DONE


def _print(plans: "list[Plan]", *, as_json: bool) -> None:
    from tt_flux_kontext.planner.roofline import calibration
    from tt_flux_kontext.planner.tables import comparison, table

    if as_json:
        print(json.dumps([each.as_dict() for each in plans], indent=2))
        return
    for each in plans:
        print(table(each), end="\n\n")
    if len(plans) > 1:
        print(comparison(plans), end="\n\n")
    print(calibration(mesh=any(each.system not in SINGLE_CHIP for each in plans)))


def _edge(text: str) -> int:
    edge = whole(16)(text)
    if edge % 16:
        raise argparse.ArgumentTypeError(f"a multiple of 16, not '{text}'")
    return edge
