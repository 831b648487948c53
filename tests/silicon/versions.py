"""What a bug report wants to know of the machine."""

import importlib.metadata
import os
import platform
from pathlib import Path

UNKNOWN = "unknown"


def versions(root: Path = Path("/")) -> dict[str, object]:
    """Of driver, firmware, TT-NN, Python, the system, and TT-NN's environment variables. `root`: of /sys and /dev."""
    cards = sorted((root / "sys/class/tenstorrent").glob("*"))
    return {
        "driver (tt-kmd)": _read(root / "sys/module/tenstorrent/version"),
        "devices": sorted(str(node) for node in (root / "dev/tenstorrent").glob("*")),
        "cards": {
            card.name: {"type": _read(card / "tt_card_type"), "firmware": _read(card / "tt_fw_bundle_ver")}
            for card in cards
        },
        "ttnn": _distribution("ttnn"),
        "torch": _distribution("torch"),
        "python": platform.python_version(),
        "system": _system(),
        "kernel": platform.release(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith("TT_")},
    }


def _read(file: Path) -> str:
    """A one-line file of the driver; those of cards exist from tt-kmd 2 on."""
    try:
        return file.read_text().strip()
    except OSError:
        return UNKNOWN


def _distribution(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
