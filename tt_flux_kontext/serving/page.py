"""A page on which people edit pictures, by gradio: another client of the service, in the same process."""

import asyncio
import html
import io
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from loguru import logger
from PIL import Image
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tt_flux_kontext.edit import Phase
from tt_flux_kontext.serving.errors import LEFT, ApiError, refused, unexpected
from tt_flux_kontext.serving.options import read_options
from tt_flux_kontext.serving.order import EDITS
from tt_flux_kontext.serving.pictures import read_pictures
from tt_flux_kontext.serving.service import Service, Shown
from tt_flux_kontext.serving.settings import PAGE

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it as it is imported
import gradio as gr  # noqa: E402
from gradio import processing_utils  # noqa: E402

PREVIEWS = 3  # of an edit
HOUR = 3600
FONT, MONOSPACE = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # those of the reader's machine
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Turn:
    """An edit that was made: paths of its pictures' files, and what was said to get from one to the other."""

    before: str
    after: str
    said: str


def mount(app: FastAPI, service: Service) -> None:
    """Puts the page under `PAGE`, behind the application's gate."""
    folder = tempfile.TemporaryDirectory(prefix="tt_flux_kontext_page_")  # that no other user can look into
    os.environ["GRADIO_TEMP_DIR"] = folder.name

    @asynccontextmanager
    async def lifespan(gradio_app: FastAPI) -> AsyncIterator[None]:
        closing = asyncio.create_task(close_with_worker(gradio_app))
        yield
        closing.cancel()
        folder.cleanup()

    async def close_with_worker(gradio_app: FastAPI) -> None:
        """Closes the streams by which open pages are known, and for whose end the server waits when it stops."""
        await asyncio.to_thread(service.worker.join)
        gradio_app.stop_event.set()

    blocks = _Page(service, Path(folder.name)).blocks
    gr.mount_gradio_app(
        app,
        blocks,
        PAGE,
        app_kwargs={"lifespan": lifespan, "middleware": [Middleware(_SelfContained)]},
        max_file_size=service.settings.upload_bytes,
        theme=gr.themes.Default(font=FONT, font_mono=MONOSPACE),
        footer_links=[],
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )
    blocks.has_launched = True  # else gradio doesn't check that files which a request names were uploaded
    processing_utils.async_ssrf_protected_download = _fetch_nothing


class _SelfContained:
    """Middleware. Browsers hold the page to asking nobody but this server."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["content-security-policy"] = POLICY
            await send(message)

        await self.app(scope, receive, with_policy)


async def _fetch_nothing(url: str, cache_dir: str) -> str:
    """In the place of gradio's function, which fetches files of which a request names a URL."""
    raise gr.Error("Pictures are uploaded here, not fetched.", print_exception=False)


class _Page:
    """Components and what they do. `folder`: for files of pictures."""

    def __init__(self, service: Service, folder: Path):
        self._service = service
        self._folder = folder
        with gr.Blocks(title=service.settings.model, analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as blocks:
            self._lay_out()
            self._connect()
        self.blocks = blocks

    def _lay_out(self) -> None:
        self._turns, self._chosen = gr.State([]), gr.State(None)
        with gr.Row():
            with gr.Column():
                self._canvas = gr.ImageEditor(
                    label="Picture; paint over what may change, if not all of it may",
                    sources=("upload", "clipboard"),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=["#ff4040"], color_mode="fixed"),
                    height=420,
                    elem_id="picture",
                )
                self._prompt = gr.Textbox(label="What to do with it", elem_id="prompt")
                with gr.Row():
                    most = self._service.settings.max_steps
                    self._steps = gr.Slider(1, most, min(28, most), step=1, label="Steps", elem_id="steps")
                    self._guidance = gr.Number(2.5, label="Guidance", minimum=0, elem_id="guidance")
                    self._seed = gr.Number(None, label="Seed", placeholder="any", precision=0, elem_id="seed")
                with gr.Row():
                    self._run_button = gr.Button("Run", variant="primary", elem_id="run")
                    self._stop_button = gr.Button("Stop", elem_id="stop")
                self._status = gr.HTML(elem_id="status")
            with gr.Column():
                self._slider = gr.ImageSlider(
                    label="Before and after",
                    buttons=["fullscreen"],
                    interactive=False,
                    max_height=420,
                    elem_id="slider",
                )
                with gr.Row():
                    self._download = gr.DownloadButton("Download", interactive=False, elem_id="download")
                    self._further = gr.Button("Edit this one", interactive=False, elem_id="further")
                self._history = gr.Gallery(
                    label="Turns",
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="history",
                )

    def _connect(self) -> None:
        asked = [self._canvas, self._prompt, self._seed, self._steps, self._guidance, self._turns]
        shown = [self._slider, self._download, self._further, self._chosen]
        # Without limits: the queue is the worker's.
        how = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        running = gr.on(
            [self._run_button.click, self._prompt.submit],
            self._run,
            asked,
            [self._status, self._history, self._turns, *shown],
            preprocess=False,  # gradio would decode all that strangers send; `read_pictures` does it with care
            **how,
        )
        self._stop_button.click(lambda: _said("Stopped."), None, self._status, cancels=running, **how)
        self._history.select(self._choose, self._turns, shown, **how)
        self._further.click(_as_picture, [self._turns, self._chosen], self._canvas, **how)

    async def _run(self, canvas: dict | None, prompt, seed, steps, guidance, turns: list[Turn]):
        """Values of components as an edit goes on. What goes wrong is said in the status."""
        service, route = self._service, EDITS.route
        fields = {
            "prompt": prompt,
            "seed": seed,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "stream": True,
            "partial_images": PREVIEWS,
        }
        said = _said("Waiting ...")
        yield {self._status: said}
        try:
            with service.metrics.counting(route):
                service.worker.check()
                options = read_options(fields, service.settings)
                if not prompt.strip():
                    raise refused("Say in words what to do with the picture.", "prompt")
                if canvas is None or canvas["background"] is None:
                    raise refused("There is no picture yet.", "image")
                picture, mask = await asyncio.to_thread(_read, canvas, service.settings.upload_pixels)
                drawn = io.BytesIO(Path(canvas["background"]["path"]).read_bytes())
                claim = await asyncio.to_thread(service.claim, drawn)
                before = self._keep(_png(picture), "before.png")
                order, events = await service.begin(EDITS, options, claim, [picture], mask, asyncio.Event().wait)
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, Shown):
                            after = self._keep(event.files[0], f"tt_flux_kontext-{order.seed}.png")
                            yield {self._slider: (before, after)}
                        elif event:
                            said = _progress(event)
                        yield {self._status: said}  # here gradio closes what nobody looks at any more
                service.metrics.answered(route, time.perf_counter() - order.begun)
        except ApiError as error:
            yield {self._status: _said(str(error))}
            return
        except (asyncio.CancelledError, GeneratorExit):
            service.metrics.failed(route, ApiError(LEFT, "The client left."))
            raise
        except Exception:
            logger.exception("An edit of the page's failed")
            yield {self._status: _said(str(unexpected()))}
            return
        turns = [*turns, Turn(before, after, f"{prompt} (seed {order.seed})")]
        yield {
            self._status: _said(f"Seed {order.seed}, {time.perf_counter() - order.begun:.1f} s"),
            self._history: [(turn.after, turn.said) for turn in turns],
            self._turns: turns,
            **self._show(turns, len(turns) - 1),
        }

    def _choose(self, turns: list[Turn], event: gr.SelectData) -> dict:
        return self._show(turns, event.index)

    def _show(self, turns: list[Turn], chosen: int) -> dict:
        turn = turns[chosen]
        return {
            self._slider: (turn.before, turn.after),
            self._download: gr.DownloadButton(value=turn.after, interactive=True),
            self._further: gr.Button(interactive=True),
            self._chosen: chosen,
        }

    def _keep(self, file: bytes, name: str) -> str:
        """The path under which the page finds it."""
        path = self._folder / secrets.token_hex(16) / name
        path.parent.mkdir()
        path.write_bytes(file)
        return str(path)


def _read(canvas: dict, pixels: int) -> tuple[Image.Image, Image.Image | None]:
    """The picture, and a mask that is white where something is painted on it, if there is."""
    file, *layers = [
        io.BytesIO(Path(each["path"]).read_bytes()) for each in (canvas["background"], *canvas["layers"][:1])
    ]
    (picture,), bare = read_pictures([file], layers[0] if layers else None, pixels)
    mask = bare and bare.point(lambda transparency: 255 * (transparency < 255))
    return picture, mask if mask and mask.getbbox() else None


def _as_picture(turns: list[Turn], chosen: int) -> dict:
    """A result as the next turn's picture, with nothing painted on it."""
    return {"background": turns[chosen].after, "layers": [], "composite": None}


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _progress(phase: Phase) -> str:
    if not phase.step:
        return _said(f"Done: {phase.name}")
    bar = f'<progress value="{phase.step}" max="{phase.steps}"></progress>'
    return f"{bar} {_said(f'Step {phase.step} of {phase.steps}')}"


def _said(text: str) -> str:
    """A text as HTML."""
    return f'<span role="status">{html.escape(text)}</span>'
