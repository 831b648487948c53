"""The child process of first_contact: runs cases on a device, and leaves what each gave in a folder.

    python -m tests.silicon.child DEVICE FOLDER NAME ...

NAME.npz has `out` and `reference`, flat; of a case that raised there is NAME.error instead, one line.
"""

import faulthandler
import os
import sys
import traceback
from pathlib import Path

import numpy as np

from tests.silicon.case import Bench
from tests.silicon.cases import CASES
from tt_flux_kontext.device import open_device


def main(device_name: str, folder: Path, names: list[str]) -> int:
    """Returns 1 if a case raised, else 0."""
    raised = 0
    with open_device(device_name, mesh_shape=(1, 1)) as device:
        for name in names:
            print(f"{name} ...", flush=True)  # in the log, before whatever TT-NN says of it
            try:
                out, reference = CASES[name].run(Bench(device))
            except Exception as error:
                traceback.print_exc()
                raised += 1
                (folder / f"{name}.error").write_text(in_a_line(error))
            else:
                _save(folder / f"{name}.npz", out=out.numpy(), reference=reference.numpy())
    return 1 if raised else 0


def in_a_line(error: Exception) -> str:
    """Kind and last line of an error; TT-NN's have C++ frames behind their words."""
    lines = str(error).partition("\nbacktrace:")[0].strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


def _save(file: Path, **arrays: np.ndarray) -> None:
    """Under another name first: whoever finds the file finds all of it."""
    new = file.with_suffix(".new")
    with new.open("wb") as stream:
        np.savez(stream, **arrays)
    os.replace(new, file)


if __name__ == "__main__":
    faulthandler.enable()  # a crash leaves a trace in the log
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
