"""The page, in a real browser."""

import base64
import io
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import c2pa
import numpy as np
import pytest
from PIL import Image

from tests.certificates import write_chain
from tests.serving.conftest import SECONDS, Served, served, until
from tt_flux_kontext.credentials import Credentials
from tt_flux_kontext.parameters import Parameters
from tt_flux_kontext.serving import service as service_module
from tt_flux_kontext.serving.engine import open_engine
from tt_flux_kontext.serving.errors import refused
from tt_flux_kontext.serving.settings import PAGE, Settings

gradio = pytest.importorskip("gradio", minversion="6", reason="gradio isn't installed: the extra `page`")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed, which drives the browser")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, in gradio
DEMO = Path(__file__).parents[2] / "demo"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = (  # those of a browser that asks for nothing of its own accord
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
STEPS = 6
CIRCLE, SQUARE, GROUND = (44, 52), (96, 88), (112, 20)  # places in demo/pictures/circle.png: x, y


class Reader:
    """Somebody who looks at the page.

    Attributes:
        asked: URLs that the browser asked for.
        failed: those that it didn't get.
    """

    def __init__(self, tab, url: str):
        self.tab = tab
        self.asked, self.failed = [], []
        tab.on("request", lambda request: self.asked.append(request.url))
        tab.on("response", lambda answer: self.failed.extend([answer.url] * (answer.status >= 400)))
        tab.goto(url + PAGE)
        tab.wait_for_selector("#picture input[type=file]", state="attached")

    @property
    def status(self) -> str:
        return " ".join(self.tab.locator("#status [role=status]").all_inner_texts())

    @property
    def slider(self) -> list[str]:
        """Names of the pictures before and after, as the server knows them."""
        return [image.get_attribute("src") for image in self.tab.query_selector_all("#slider img")]

    def upload(self, path: Path) -> None:
        self.tab.set_input_files("#picture input[type=file]", path)
        until(lambda: np.ptp(self._middle()) > 50)  # until it is drawn: a coloured one

    def ask(self, prompt: str, seed: int = 0) -> None:
        self.tab.fill("#prompt textarea", prompt)
        self.tab.fill("#seed input", str(seed))
        self.tab.fill("#steps input[type=number]", str(STEPS))
        self.tab.click("#run")
        self.tab.wait_for_function("!document.querySelector('#status').innerText.includes('Seed')")  # of the last turn

    def go_on(self) -> None:
        """With the result that is shown as the picture."""
        self.tab.click("#further")
        self.tab.wait_for_timeout(3000)  # until it is drawn

    def _middle(self) -> np.ndarray:
        """The pixel [3] in the middle of the canvas."""
        seen = np.array(Image.open(io.BytesIO(self.tab.locator("#picture").screenshot())).convert("RGB")).astype(int)
        return seen[len(seen) // 2, seen.shape[1] // 2]

    def follow(self) -> tuple[list[str], list[str]]:
        """What the status says, and what is shown as the result, until the edit is done."""
        said, shown = [], []
        while not (said and said[-1].startswith("Seed")):
            self.tab.wait_for_timeout(50)
            said += [self.status] if self.status not in said[-1:] else []
            shown += [name for name in self.slider[1:] if name not in shown[-1:]]
            assert len(said) < 100
        return said, shown

    def download(self) -> Image.Image:
        with self.tab.expect_download() as download:
            self.tab.click("#download")
        return Image.open(download.value.path())

    def paint(self) -> None:
        """Over the left half of the picture, up and down."""
        box = self.tab.locator("#picture canvas").first.bounding_box()
        edge = min(box["width"], box["height"])
        left, top = box["x"] + (box["width"] - edge) / 2, box["y"] + (box["height"] - edge) / 2
        mouse = self.tab.mouse
        for x in np.arange(0.1, 0.5, 0.03):
            mouse.move(left + x * edge, top + 0.1 * edge)
            mouse.down()
            mouse.move(left + x * edge, top + 0.9 * edge, steps=5)
            mouse.up()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Reader]]:
    """(server, options of the context) -> somebody who looks at its page, with cookies and a cache of his own."""
    contexts = []

    def visit(server: Served, **options) -> Reader:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 860}, **options))
        contexts[-1].set_default_timeout(1000 * SECONDS)
        return Reader(contexts[-1].new_page(), server.url)

    yield visit
    for context in contexts:
        context.close()


@pytest.mark.slow
def test_turns(visit, tmp_path):
    """Three edits by the demo's weights, of which each is of another's result, and the last with a mask; all signed."""
    files = write_chain(tmp_path)
    credentials = Credentials(files.chain, files.key)
    settings = Settings("tiny_kontext", max_area=128 * 128)
    parameters = Parameters(prompt="", weights=str(DEMO / "tiny_kontext"), device="emulated")
    opening = partial(open_engine, parameters, settings)
    with served(opening, settings, page=True, credentials=credentials) as server:
        until(lambda: server.service.worker.state == "ready")
        reader = visit(server)
        reader.upload(DEMO / "pictures" / "circle.png")

        reader.ask("make the circle red")
        said, shown = reader.follow()
        assert f"Step {STEPS - 1} of {STEPS}" in said
        assert len(shown) > 1  # the result, and guesses before it
        red = reader.download()
        assert colour(red, CIRCLE) == "red" and colour(red, SQUARE) == "green" and colour(red, GROUND) == "yellow"
        assert red.text["parameters"].startswith("make the circle red\n") and "Seed: 0" in red.text["parameters"]
        assert "compositeWithTrainedAlgorithmicMedia" in red.text["XML:com.adobe.xmp"]

        first = reader.slider
        reader.go_on()
        reader.ask("change the background to blue")
        reader.follow()
        blue = reader.download()
        assert colour(blue, CIRCLE) == "red" and colour(blue, GROUND) == "blue"
        with c2pa.Reader("image/png", io.BytesIO(Path(blue.filename).read_bytes())) as signed:
            assert signed.get_validation_state() == "Valid" and len(json.loads(signed.json())["manifests"]) == 2

        reader.tab.screenshot(path=tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size < 200_000

        reader.tab.click("#history button >> nth=0")  # back to the first
        reader.tab.wait_for_timeout(1000)
        assert reader.slider == first
        reader.go_on()
        reader.paint()
        reader.ask("change the background to blue")
        reader.follow()
        half = reader.download()
        assert colour(half, GROUND) == "yellow" and colour(half, (8, 64)) == "blue"
        assert server.outcomes() == {"ok": 3}
        assert all(url.startswith((server.url, "data:", "blob:")) for url in reader.asked) and not reader.failed


def colour(picture: Image.Image, place: tuple[int, int]) -> str:
    """The nearest of some, of the 9 x 9 pixels there."""
    x, y = place
    seen = np.array(picture.convert("RGB").crop((x - 4, y - 4, x + 5, y + 5))).mean((0, 1))
    known = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220), "yellow": (245, 215, 50)}
    return min(known, key=lambda name: np.abs(seen - known[name]).sum())


@pytest.mark.slow
def test_says_what_goes_wrong(visit, serve_puppet):
    async def review(prompts, pictures):
        if "forbidden" in prompts:
            raise refused("Refused by the server's filter: <b>no</b>")

    with serve_puppet(review, page=True, queue=1, together=1) as server:
        reader = visit(server)
        for prompt, says in ((" ", "Say in words what"), ("a", "no picture yet"), ("forbidden", "filter: <b>no</b>")):
            if prompt == "forbidden":
                reader.upload(DEMO / "pictures" / "circle.png")
            reader.ask(prompt)
            reader.tab.wait_for_function("says => document.querySelector('#status').innerText.includes(says)", arg=says)
        assert server.outcomes() == {"refused": 3}


@pytest.mark.slow
def test_stop(visit, serve_puppet, puppet):
    with serve_puppet(page=True) as server:
        reader = visit(server)
        reader.upload(DEMO / "pictures" / "circle.png")
        reader.ask("a")
        until(lambda: puppet.begun == ["a"])
        reader.tab.click("#stop")
        until(lambda: server.outcomes() == {"left": 1})
        reader.tab.wait_for_function("document.querySelector('#status').innerText.includes('Stopped')")
        puppet.go()
        until(lambda: "tt_flux_kontext_at_work 0.0" in server.ask("/metrics").said)


@pytest.mark.slow
def test_leaves(visit, serve_puppet, puppet, monkeypatch):
    """Who closes the page takes his edit off the device."""
    monkeypatch.setattr(service_module, "PING", 0.5)
    with serve_puppet(page=True) as server:
        reader = visit(server)
        reader.upload(DEMO / "pictures" / "circle.png")
        reader.ask("a")
        until(lambda: puppet.begun == ["a"])
        reader.tab.close()
        until(lambda: server.outcomes() == {"left": 1})


@pytest.mark.slow
def test_the_server_stops_while_the_page_is_open(visit, serve_puppet):
    with serve_puppet(page=True) as server:
        visit(server)


class TestKey:
    """The page's is the password that browsers ask for; without it no route of the page's answers."""

    def test_no_key(self, serve_puppet):
        with serve_puppet(page=True, api_key="secret") as server:
            for path in ("", "/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/startup-events"):
                answer = server.ask(PAGE + path)
                assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Basic ")
            for header in (basic("wrong"), "Basic secret", "Basic ?", "Bearer wrong"):
                assert server.ask(PAGE + "/", authorization=header).status == 401
            assert server.ask(PAGE + "/", authorization=basic("secret")).status == 200
            assert server.ask("/v1/models", authorization=basic("secret")).status == 401  # clients send theirs

    @pytest.mark.slow
    def test_in_the_browser(self, visit, serve_puppet):
        with serve_puppet(page=True, api_key="secret") as server:
            reader = visit(server, http_credentials={"username": "any", "password": "secret"})
            reader.ask(" ")
            reader.tab.wait_for_function("document.querySelector('#status').innerText.includes('Say in words')")


def basic(key: str) -> str:
    return "Basic " + base64.b64encode(f"any:{key}".encode()).decode()


@pytest.mark.parametrize("header", [{"sec_fetch_site": "cross-site"}, {"origin": "http://example.org"}])
def test_other_sites_send_nothing(serve_puppet, header):
    with serve_puppet(page=True) as server:
        for path in (PAGE + "/gradio_api/queue/join", "/v1/images/generations"):
            assert server.ask(path, {"prompt": "a"}, **header).status == 403


@pytest.mark.parametrize(
    "named, says",
    [
        (str(DEMO / "pictures" / "circle.png"), None),  # gradio's own refusal, which is in the log
        ("http://example.org/a.png", "Pictures are uploaded here, not fetched."),
    ],
)
def test_only_uploads_are_read(serve_puppet, puppet, named, says):
    """Neither the server's own files nor what lies elsewhere, where a request names them."""
    with serve_puppet(page=True) as server:
        file = {"path": named, "meta": {"_type": "gradio.FileData"}}
        canvas = {"background": file, "layers": [], "composite": None}
        data = [canvas, "a", 0, 2, 2.5, None]
        server.ask(f"{PAGE}/gradio_api/queue/join", {"data": data, "fn_index": 0, "session_hash": "a"})
        said = events(f"{server.url}{PAGE}/gradio_api/queue/data?session_hash=a")
        assert said[-1]["success"] is False and said[-1]["output"]["error"] == says
        assert not puppet.begun


def events(url: str) -> list[dict]:
    """Of a stream, up to the one that ends a run."""
    said = []
    with urllib.request.urlopen(url, timeout=SECONDS) as stream:
        for line in io.TextIOWrapper(stream):
            if line.startswith("data: "):
                said.append(json.loads(line[6:]))
                if said[-1]["msg"] == "process_completed":
                    break
    return said
