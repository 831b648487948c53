"""Options of the demo, checked before anything is loaded, and its report at the end."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from tt_flux_kontext.backend import choose

PICTURES = Path(__file__).parent / "pictures"


@dataclass(frozen=True)
class Options:
    """What the command line asks for. Without `weights` the tiny trained model runs, at its small size."""

    prompt: str
    image: Image.Image
    out: Path
    weights: str | None
    steps: int
    guidance: float
    seed: int
    size: tuple[int, int] | None  # (height, width)


def pytest_addoption(parser):
    group = parser.getgroup("FLUX.1 Kontext demo")
    group.addoption("--prompt", default="make the circle red", help="what to change (default: %(default)s)")
    group.addoption("--image", default=str(PICTURES / "circle.png"), help="picture to edit (default: a bundled one)")
    group.addoption("--out", default="out/edited.png", help="where the result goes (default: %(default)s)")
    group.addoption("--weights", help="checkpoint folder or hub id (default: the tiny one in demo/tiny_kontext)")
    group.addoption("--device", help="emulated or silicon (default: a card where there is one, else emulated)")
    group.addoption("--steps", type=int, default=28, help="denoising steps (default: %(default)s)")
    group.addoption("--guidance", type=float, default=2.5, help="guidance scale (default: %(default)s)")
    group.addoption("--seed", type=int, default=0, help="of the starting noise (default: %(default)s)")
    group.addoption("--width", type=int, help="of the result, with --height (default: the picture's bucket)")
    group.addoption("--height", type=int, help="of the result, with --width")


def pytest_configure(config):
    try:
        config.stash[_OPTIONS] = _options(config.option)
        choose(config.option.device and config.option.device.partition(":")[0])
    except (ValueError, RuntimeError) as error:
        raise pytest.UsageError(str(error)) from error


def _options(given) -> Options:
    if not given.prompt.strip():
        raise ValueError("--prompt is empty: say what to change.")
    if given.steps < 1:
        raise ValueError(f"--steps {given.steps}: at least one step is needed.")
    if (given.width is None) != (given.height is None):
        raise ValueError("--width and --height go together.")
    if given.width is not None and min(given.width, given.height) < 16:
        raise ValueError(f"--width {given.width} --height {given.height}: both must be at least 16 pixels.")
    out = Path(given.out)
    if out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {out}: the name must end like a picture's, for example in .png.")
    return Options(
        prompt=given.prompt,
        image=_read_picture(given.image),
        out=out,
        weights=given.weights,
        steps=given.steps,
        guidance=given.guidance,
        seed=given.seed,
        size=(given.height, given.width) if given.width else None,
    )


def _read_picture(path: str) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"--image {path}: there is no such file.") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"--image {path}: it can't be read as a picture ({error}).") from error


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
