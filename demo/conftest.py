"""Options of the demo, checked before anything is loaded, and its report at the end."""

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from demo.results import can_be_saved
from tt_flux_kontext.device import choose_device
from tt_flux_kontext.pictures import to_rgb, upright

PICTURES = Path(__file__).parent / "pictures"


@dataclass(frozen=True)
class Options:
    """What the command line asks for. Without `weights` the tiny trained model runs, at its small size."""

    prompt: str
    image: Image.Image
    mask: Image.Image | None  # white where the picture is painted anew
    references: tuple[Image.Image, ...]
    out: Path
    weights: str | None
    device: str
    steps: int
    guidance: float
    seeds: tuple[int, ...]
    size: tuple[int, int] | None  # (height, width)
    split: tuple[int, int] | None  # chips over which the transformer's tokens and features are split

    @property
    def model(self) -> str:
        return self.weights or "demo/tiny_kontext"

    def out_of(self, seed: int) -> Path:
        """Where a seed's result goes: each of several has its seed in the name."""
        return self.out if len(self.seeds) == 1 else self.out.with_stem(f"{self.out.stem}_{seed}")

    def parameters(self, seed: int, size: tuple[int, int], precision: str) -> str:
        """Of a result, in the words that other programs for such pictures use. `size` is (width, height)."""
        fields = {
            "Steps": self.steps,
            "Sampler": "Euler",
            "Distilled CFG Scale": self.guidance,
            "Seed": seed,
            "Size": f"{size[0]}x{size[1]}",
            "Model": self.model,
            "Precision": precision,
            "Device": self.device,
            "Software": "tt_flux_kontext",
        }
        if self.mask:
            fields["Mask"] = "yes"
        if self.references:
            fields["References"] = len(self.references)
        if self.split:
            fields["Split"] = "{}x{}".format(*self.split)
        return f"{self.prompt}\n" + ", ".join(f"{name}: {value}" for name, value in fields.items())


def pytest_addoption(parser):
    group = parser.getgroup("FLUX.1 Kontext demo")
    group.addoption("--prompt", default="make the circle red", help="what to change (default: %(default)s)")
    group.addoption("--image", default=str(PICTURES / "circle.png"), help="picture to edit (default: a bundled one)")
    group.addoption("--mask", metavar="FILE", help="picture that is white where to edit; all else stays as it is")
    group.addoption(
        "--reference", metavar="FILE", nargs="+", action="extend", help="more pictures for the model to look at"
    )
    group.addoption("--out", default="out/edited.png", help="where the result goes (default: %(default)s)")
    group.addoption("--weights", help="checkpoint folder or hub id (default: the tiny one in demo/tiny_kontext)")
    group.addoption("--device", help="silicon, emulated, emulated:t3k, ... (default: a card where there is one)")
    group.addoption("--split", help="chips for tokens and for features, as 4,2 (default: the longer axis for tokens)")
    group.addoption("--steps", type=int, default=28, help="denoising steps (default: %(default)s)")
    group.addoption("--guidance", type=float, default=2.5, help="guidance scale (default: %(default)s)")
    group.addoption(
        "--seed", type=int, nargs="+", action="extend", help="of the starting noise; a result for each (default: 0)"
    )
    group.addoption("--width", type=int, help="of the result, with --height (default: the picture's bucket)")
    group.addoption("--height", type=int, help="of the result, with --width")


def pytest_configure(config):
    try:
        device, _ = choose_device(config.option.device)
        config.stash[_OPTIONS] = _options(config.option, config.option.device or device)
    except (ValueError, RuntimeError) as error:
        raise pytest.UsageError(str(error)) from error


def _options(given, device: str) -> Options:
    if not given.prompt.strip():
        raise ValueError("--prompt is empty: say what to change.")
    if given.steps < 1:
        raise ValueError(f"--steps {given.steps}: at least one step is needed.")
    if not math.isfinite(given.guidance):
        raise ValueError(f"--guidance {given.guidance}: it must be a number.")
    seeds = tuple(dict.fromkeys(given.seed or [0]))
    if not all(0 <= seed < 2**64 for seed in seeds):
        raise ValueError(f"--seed {' '.join(map(str, seeds))}: seeds are from 0 to {2**64 - 1}.")
    if (given.width is None) != (given.height is None):
        raise ValueError("--width and --height go together.")
    if given.width is not None and min(given.width, given.height) < 16:
        raise ValueError(f"--width {given.width} --height {given.height}: both must be at least 16 pixels.")
    return Options(
        prompt=given.prompt,
        image=to_rgb(_read_picture(given.image, "--image")),
        mask=_read_picture(given.mask, "--mask") if given.mask else None,
        references=tuple(to_rgb(_read_picture(path, "--reference")) for path in given.reference or ()),
        out=_writable(Path(given.out)),
        weights=given.weights,
        device=device,
        steps=given.steps,
        guidance=given.guidance,
        seeds=seeds,
        size=(given.height, given.width) if given.width else None,
        split=_split(given.split) if given.split else None,
    )


def _split(text: str) -> tuple[int, int]:
    try:
        tokens, features = map(int, text.split(","))
    except ValueError:
        raise ValueError(f"--split {text}: two numbers of chips, for tokens and for features, as 4,2.") from None
    return tokens, features


def _writable(out: Path) -> Path:
    if not can_be_saved(out.suffix):
        raise ValueError(f"--out {out}: the name must end like a picture's, for example in .png.")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"--out {out}: no file of that name can be written.")
    return out


def _read_picture(path: str, option: str) -> Image.Image:
    """Upright."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        return upright(Image.open(path), option)
    except FileNotFoundError as error:
        raise ValueError(f"{option} {path}: there is no such file.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        plugin = Path(path).suffix.lower() in (".heic", ".heif")
        hint = " HEIC is read with the package pillow-heif: pip install pillow-heif." if plugin else ""
        raise ValueError(f"{option} {path}: it can't be read as a picture ({error}).{hint}") from error


@pytest.fixture
def options(request) -> Options:
    return request.config.stash[_OPTIONS]


@pytest.fixture
def device_params(request) -> dict:
    return {"name": request.config.option.device}


@pytest.fixture
def report(request) -> list[str]:
    """Lines to print when all is done."""
    return request.config.stash.setdefault(_REPORT, [])


_OPTIONS = pytest.StashKey[Options]()
_REPORT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(_REPORT, [])
    if lines:
        terminalreporter.section("FLUX.1 Kontext demo")
        for line in lines:
            terminalreporter.line(line)
