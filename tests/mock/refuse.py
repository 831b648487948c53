"""The child process of tests of refusals: makes wrong calls, in the order asked for, and tells which were refused."""

import json

from tests import mesh_refusals, refusals
from tests.refusals import New
from tt_flux_kontext.device import open_device
from tt_flux_kontext.planner.mock_device import answer

CASES = refusals.CASES | mesh_refusals.CASES
SIGNATURES = refusals.SIGNATURES | mesh_refusals.SIGNATURES


def main() -> None:
    with answer() as cases, open_device() as device:
        for case in cases:
            words = refusal(case, New(device))
            print(json.dumps({"case": case, "refused": words is not None, "words": words}), flush=True)


def refusal(case: str, new: New) -> str | None:
    """First line of what TT-NN says; None if it takes the call. Another kind of error is a fault of the case."""
    call, kind = (SIGNATURES[case], TypeError) if case in SIGNATURES else (CASES[case][0], RuntimeError)
    try:
        call(new)
    except kind as error:
        return str(error).strip().partition("\n")[0]
    return None


if __name__ == "__main__":
    main()
