"""A node for ComfyUI that has pictures edited by `tt-flux-kontext serve`, on this machine or another.

It is one file for ComfyUI's folder `custom_nodes`, and needs nothing that isn't in ComfyUI's environment.
"""

import asyncio
import base64
import http.client
import json
import os
import secrets
import time
import urllib.error
import urllib.request
from io import BytesIO

import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io
from PIL import Image

SERVER = os.environ.get("TT_FLUX_KONTEXT_SERVER", "http://127.0.0.1:8000").rstrip("/")
KEY = "TT_FLUX_KONTEXT_API_KEY"  # environment variable: workflows are files that people share
TIMEOUT = 1800  # seconds without a byte from the server, which has a limit of its own
PATIENCE = 600  # seconds of asking a busy server again


class TTFluxKontextEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTFluxKontextEdit",
            display_name="FLUX.1 Kontext edit (Tenstorrent)",
            category="image/edit",
            description="Has a picture edited by a server with a Tenstorrent card (tt-flux-kontext serve).",
            inputs=[
                io.Image.Input("image", tooltip="The picture to edit. Of a batch the others are references for it."),
                io.String.Input("prompt", multiline=True, tooltip="What to change, and what to keep."),
                io.Mask.Input("mask", optional=True, tooltip="White where to edit, in the picture's size."),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=True),
                io.Int.Input("steps", default=28, min=1, max=100),
                io.Float.Input("guidance", default=2.5, min=0.0, max=30.0, step=0.1),
                io.String.Input("server", default=SERVER, tooltip="Address of tt-flux-kontext serve."),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    async def execute(
        cls,
        image: torch.Tensor,
        prompt: str,
        seed: int,
        steps: int,
        guidance: float,
        server: str,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """One edit.

        Args:
            image: [B, H, W, C], from 0 to 1; the first is edited, and the others are references.
            mask: [B, H, W] or [H, W], 1 where the picture is edited; the first one counts.

        Returns [1, H, W, 3]. Raises `RuntimeError` with what the server says, or why it says nothing.
        """
        fields = {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "guidance_scale": guidance}
        files = [("image[]", _png(picture[..., :3])) for picture in image]
        if mask is not None:
            files.append(("mask", _png(_transparent(mask.reshape(-1, *mask.shape[-2:])[0]))))
        answer = await _post(server, fields, files)
        with Image.open(BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))) as picture:
            pixels = np.array(picture.convert("RGB"), dtype=np.float32) / 255
        return io.NodeOutput(torch.from_numpy(pixels)[None])


class TTFluxKontext(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TTFluxKontextEdit]


async def comfy_entrypoint() -> TTFluxKontext:
    return TTFluxKontext()


def _transparent(mask: torch.Tensor) -> torch.Tensor:
    """[H, W, 4]: the server edits where alpha is 0, as OpenAI's API has it."""
    colour = torch.zeros(*mask.shape, 3, dtype=mask.dtype, device=mask.device)
    return torch.cat([colour, 1 - mask[..., None]], dim=-1)


def _png(pixels: torch.Tensor) -> bytes:
    """A file of [H, W, C], from 0 to 1."""
    file = BytesIO()
    Image.fromarray((pixels.float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()).save(file, "PNG")
    return file.getvalue()


async def _post(server: str, fields: dict, files: list[tuple[str, bytes]]) -> dict:
    """The server's answer. One that is busy, or still loads its weights, is asked again."""
    server = server.strip().rstrip("/")
    url = f"{server}/v1/images/edits"
    if not url.startswith(("http://", "https://")):
        raise RuntimeError(f"A server's address begins with http:// or https://, which '{server}' doesn't.")
    boundary = secrets.token_hex(16)
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    key = os.environ.get(KEY)
    if key and server == SERVER:  # the workflow may be a stranger's, and its server too
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, _multipart(boundary, fields, files), headers)
    end = time.monotonic() + PATIENCE
    while True:
        status, again, answer = await asyncio.to_thread(_answer, request)
        if status == 200:
            return answer
        if again is None or time.monotonic() + again > end:
            raise RuntimeError(f"{url} answers {status}: {answer}")
        await asyncio.sleep(again)


def _answer(request: urllib.request.Request) -> tuple[int, int | None, dict | str]:
    """Status, seconds after which to ask again, and the answer, or the server's words for why there is none.

    Raises `RuntimeError` where there is no answer.
    """
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return 200, None, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        again = error.headers.get("retry-after", "")
        away = error.code in (429, 503) and again.isdigit()
        return error.code, max(1, int(again)) if away else None, _message(text)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        message = f"No answer from {request.full_url}: {reason}. Does tt-flux-kontext serve run there?"
        raise RuntimeError(message) from None


def _message(text: str) -> str:
    """Of an error in OpenAI's form, or the start of any other."""
    try:
        return json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return text[:200]


def _multipart(boundary: str, fields: dict, files: list[tuple[str, bytes]]) -> bytes:
    parts = [(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
    parts += [(f'name="{name}"; filename="{name}.png"', file) for name, file in files]
    head = f"--{boundary}\r\nContent-Disposition: form-data; "
    body = [f"{head}{what}\r\n\r\n".encode() + value + b"\r\n" for what, value in parts]
    return b"".join([*body, f"--{boundary}--\r\n".encode()])
