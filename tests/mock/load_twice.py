"""Loads models through the weight cache and then from it; run by test_weight_cache.py on the mock device."""

import json
from collections import Counter

from tt_flux_kontext.backend import watch
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.device import open_device
from tt_flux_kontext.planner.mock_device import answer
from tt_flux_kontext.precision import BF16, BFP8
from tt_flux_kontext.residency import Models

NAMES = ("t5", "modulation", "transformer")  # which both policies hold in formats of their own


def main() -> None:
    with answer() as request, open_device("silicon") as device:
        (cold, placed), (warm, read) = (_load(request["checkpoint"], device) for _ in range(2))
        print(json.dumps({"cold": cold, "warm": warm, "same": placed == read, "models": NAMES}), flush=True)


def _load(checkpoint: str, device) -> tuple[Counter, list[str]]:
    """How often TT-NN's functions were called, and what tensors they placed on the device."""
    calls, placed = Counter(), []

    def note(name, function, *args, **kwargs):
        calls[name] += 1
        result = function(*args, **kwargs)
        if name in ("from_torch", "to_device"):
            placed.append(
                f"{result.shape} {result.padded_shape} {result.dtype} {result.layout} {result.memory_config()}"
            )
        return result

    with watch(note):
        for precision in (BF16, BFP8):
            models = Models(Checkpoint(checkpoint), device, precision)
            for name in NAMES:
                models[name]
    return calls, placed


if __name__ == "__main__":
    main()
