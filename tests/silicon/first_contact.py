"""First contact with a card: every operation, whole models and an edit, beside what they should give.

    python -m tests.silicon.first_contact [NAME ...] [--device silicon] [--limit SECONDS] [--out FILE]

Each runs in a process of its own with a time limit, so that a hang or a crash is one failed row. The rows have relative
RMSE against torch in float32 of three: the device, TT-NN's kernels as a functional simulator ran them (Wormhole), and
the emulated device; and how far the device is from the other two. All of it, with the versions of driver, firmware and
TT-NN and the ends of the logs of what failed, is in one file to attach to a bug report. That is written after each row.

The device may also be TT-NN's simulator (TT_METAL_SIMULATOR, TT_METAL_SLOW_DISPATCH_MODE=1), with a larger limit.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from reference.accuracy import relative_rmse
from tests.silicon.attempt import Ending, attempt
from tests.silicon.case import Case
from tests.silicon.cases import CASES, whole_models
from tests.silicon.rules import Comparison
from tests.silicon.versions import versions
from tt_flux_kontext.backend import silicon_lacks
from tt_flux_kontext.cache_folder import VARIABLE

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "first_contact.json"
LIMIT = 300  # seconds for an operation: TT-NN compiles its kernels meanwhile
MODELS_TAKE = 4  # times as long, at most
TAIL = 60  # lines of a failed row's log
HEAD = f"{'operation':<36}{'device':>10}{'kernels':>10}{'emulated':>10}{'to kernels':>12}{'to emulated':>12}{'time':>9}"


@dataclass(frozen=True)
class Row:
    """One case. Errors are relative RMSE against torch in float32, None where there is none; `words` say what failed.

    Attributes:
        device, kernels, emulated: errors.
        to_kernels, to_emulated: relative RMSE of the device's result from theirs.
        after_a_kill: the process before had to be killed, so that the device may not have been given back.
        log: last lines of what a failed process printed.
    """

    name: str
    words: str | None
    seconds: float
    device: float | None = None
    kernels: float | None = None
    emulated: float | None = None
    to_kernels: float | None = None
    to_emulated: float | None = None
    after_a_kill: bool = False
    log: str = ""

    def __str__(self) -> str:
        figures = f"{_figure(self.device)}{_figure(self.kernels)}{_figure(self.emulated)}"
        figures += f"{_figure(self.to_kernels, 12)}{_figure(self.to_emulated, 12)}"
        words = self.words or "ok"
        return f"{self.name:<36}{figures}{self.seconds:>8.1f}s  {words}{' (after a kill)' * self.after_a_kill}"


def run(case: Case, device: str, limit: float, folder: Path) -> tuple[Ending, torch.Tensor | None]:
    """How a process for this case ended, and what the device gave if it gave anything."""
    limit *= MODELS_TAKE if case.operation.__module__ == whole_models.__name__ else 1
    ending = attempt(_command(device, folder, [case.name]), limit, folder / "log", _environment())
    error = folder / f"{case.name}.error"
    if error.exists() and not ending.killed:
        ending = replace(ending, words=error.read_text())
    result = _result(folder, case.name)
    return ending, result and result[0]


def run_emulated(names: Sequence[str], folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(out, reference) of each case that the emulated device has. One process for all: it neither hangs nor crashes."""
    attempt(_command("emulated", folder, names), None, folder / "log", _environment())
    results = {name: _result(folder, name) for name in names}
    return {name: result for name, result in results.items() if result}


def row(case: Case, ending: Ending, out, emulated, after_a_kill: bool, log: str) -> Row:
    """`out`: of the device. `emulated`: its (out, reference). Each may be None."""
    kernel = case.kernel()
    result = Row(case.name, ending.words, ending.seconds, after_a_kill=after_a_kill)
    if emulated:
        emulated, reference = emulated
        result = replace(result, emulated=relative_rmse(emulated, reference))
        if kernel is not None:
            result = replace(result, kernels=relative_rmse(kernel, reference))
        if out is not None:
            measure = emulated if kernel is None else kernel  # for a case that the kernels have not run
            found = Comparison.of(measure, out, reference)
            words = result.words or (None if case.rule.holds(found) else f"not: {case.rule.words}")
            to_kernels = None if kernel is None else found.difference
            to_emulated = relative_rmse(out, emulated)
            result = replace(result, words=words, device=found.error, to_kernels=to_kernels, to_emulated=to_emulated)
    return replace(result, log=log if result.words else "")


def first_contact(
    names: Sequence[str], device: str, limit: float, out: Path, say: Callable[[str], object] = print
) -> list[Row]:
    """Runs the cases, writes the file after each, and says what it does."""
    machine, rows, killed = versions(), [], False
    for what, value in machine.items():
        say(f"{what}: {value}")
    with tempfile.TemporaryDirectory(prefix="tt-flux-kontext-") as folder:
        folders = {name: Path(folder) / name for name in ("emulated", "device")}
        for each in folders.values():
            each.mkdir()
        say(f"\n{len(names)} operations on the emulated device ...")
        emulated = run_emulated(names, folders["emulated"])
        for name in names:
            if name not in emulated:
                say(f"  {name}: no figures of the emulated device, and none of errors")
        say(f"\n{HEAD}")
        for name in names:
            ending, result = run(CASES[name], device, limit, folders["device"])
            log = "\n".join((folders["device"] / "log").read_text(errors="replace").splitlines()[-TAIL:])
            rows.append(row(CASES[name], ending, result, emulated.get(name), killed, log))
            killed = ending.killed
            say(str(rows[-1]))
            _write(out, {"device": device, "machine": machine, "rows": [_plain(asdict(each)) for each in rows]})
    return rows


def _command(device: str, folder: Path, names: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tests.silicon.child", device, str(folder), *names]


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), VARIABLE: "off"}


def _result(folder: Path, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    file = folder / f"{name}.npz"
    if not file.exists():
        return None
    with np.load(file) as arrays:
        return torch.from_numpy(arrays["out"]), torch.from_numpy(arrays["reference"])


def _write(file: Path, report: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    os.replace(new, file)


def _plain(row: dict) -> dict:
    """JSON has no infinity."""
    return {key: str(x) if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}


def _figure(value: float | None, width: int = 10) -> str:
    return f"{'-' if value is None else format(value, '.2e'):>{width}}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Holds a card against TT-NN's kernels and the emulated device.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="operations (default: all, then models and an edit)")
    parser.add_argument("--device", default="silicon", help="silicon, or emulated to try this without a card")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for an operation (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="the report (default: out/first_contact.json)")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in CASES]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if given.device == "silicon" and (lacking := silicon_lacks()):
        sys.exit(lacking)
    rows = first_contact(given.names or list(CASES), given.device, given.limit, given.out)
    failed = [each for each in rows if each.words]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} are as they should be.")
    for each in failed:
        print(f"  {each.name}: {each.words}")
    for each in rows:
        if each.after_a_kill:
            took = "could use the device" if each.device is not None else "could not use the device: see tt-smi -r"
            print(f"  after a process was killed, the next one ({each.name}) {took}")
    print(f"All of it, to attach to a bug report: {given.out}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
