"""Routes of the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from tt_flux_kontext.serving.errors import ApiError, refused, unexpected
from tt_flux_kontext.serving.gate import Gate
from tt_flux_kontext.serving.options import read_options
from tt_flux_kontext.serving.order import EDITS, GENERATIONS
from tt_flux_kontext.serving.pictures import read_pictures
from tt_flux_kontext.serving.service import Service

IMAGES = 16  # of a request
FIELDS = 64
IMAGE_FIELDS = ("image", "image[]")


def create_app(service: Service, page: bool = False, waits: bool = False) -> FastAPI:
    """The application, with a page for people too where that is wanted. Its worker starts and stops with it.

    Where it `waits` it has started when the weights are loaded, and doesn't start at all without a device.
    """
    settings, worker, metrics = service.settings, service.worker, service.metrics

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        if waits:
            await worker.opened()
        yield
        worker.stop()
        await asyncio.to_thread(worker.join)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, settings=settings)

    @app.exception_handler(ApiError)
    async def as_it_says(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def in_our_form(request: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, error.detail).response()

    @app.exception_handler(Exception)
    async def our_fault(request: Request, error: Exception) -> Response:
        return unexpected().response()

    @app.get("/health")
    async def health() -> Response:
        """Whether the process is worth keeping."""
        return JSONResponse({"status": worker.state}, 503 if worker.state == "broken" else 200)

    @app.get("/v1/health")
    async def ready() -> Response:
        """Whether requests are taken."""
        return JSONResponse({"status": worker.state, "model": settings.model}, 200 if worker.state == "ready" else 503)

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict:
        if name != settings.model:
            raise ApiError(404, f"There is no model '{name}' here.", param="model", code="model_not_found")
        return model

    model = {"id": settings.model, "object": "model", "created": 0, "owned_by": "tt_flux_kontext"}

    @app.get("/metrics")
    async def counts() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        with metrics.counting(EDITS.route):
            worker.check()  # before the upload
            async with request.form(max_files=IMAGES + 1, max_fields=FIELDS) as form:
                fields, images, mask = _sorted(form.multi_items())
                options = read_options(fields, settings)
                if not images:
                    raise refused("`image` is missing: a file in multipart/form-data.", "image")
                files = [image.file for image in images], mask and mask.file, settings.upload_pixels
                pictures, painted = await asyncio.to_thread(read_pictures, *files)
                claim = await asyncio.to_thread(service.claim, *files[0])
            return await service.answer(request, EDITS, options, claim, pictures, painted)

    @app.post("/v1/images/generations")
    async def generations(request: Request) -> Response:
        with metrics.counting(GENERATIONS.route):
            worker.check()
            try:
                fields = await request.json()
            except ValueError:
                raise refused("The request is no JSON.") from None
            if not isinstance(fields, dict):
                raise refused("The request is no JSON object.")
            return await service.answer(request, GENERATIONS, read_options(fields, settings), service.claim())

    if page:
        from tt_flux_kontext.serving.page import mount  # an extra

        mount(app, service)
    return app


def _sorted(items: list[tuple[str, str | UploadFile]]) -> tuple[dict, list[UploadFile], UploadFile | None]:
    """Fields, pictures and mask of a form. Raises `ApiError` for a file among the fields, and the like."""
    fields, images = {}, []
    for name, value in items:
        if isinstance(value, UploadFile) != (name in (*IMAGE_FIELDS, "mask")):
            raise refused(f"`{name}` {'is no file' if isinstance(value, UploadFile) else 'has to be a file'}.", name)
        if name in IMAGE_FIELDS:
            images.append(value)
        elif name in fields:
            raise refused(f"`{name}` is there twice.", name)
        else:
            fields[name] = value
    return fields, images, fields.pop("mask", None)
