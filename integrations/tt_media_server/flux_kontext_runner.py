"""FLUX.1 Kontext under Tenstorrent's media server: a file for its folder `tt_model_runners`. README.md has the rest."""

from contextlib import ExitStack

from fastapi import HTTPException
from PIL import Image
from telemetry.image_metrics import ImageStageRecorder, sampler_name
from telemetry.telemetry_client import TelemetryEvent
from tt_model_runners.base_device_runner import BaseDeviceRunner
from utils.decorators import log_execution_time
from utils.image_manager import ImageManager

from tt_flux_kontext import FluxKontextPipeline, open_device
from tt_flux_kontext.serving.media_server import MediaServerPipeline

REFUSALS = (ValueError, TypeError, OSError, SyntaxError, Image.DecompressionBombError)
"""The pipeline's for arguments that can't be, and PIL's for files."""


class FluxKontextRunner(BaseDeviceRunner):
    """Makes pictures and edits them, one at a time, in the server's process for a group of chips."""

    def __init__(self, device_id: str):
        super().__init__(device_id)  # sets TT_VISIBLE_DEVICES
        self._images = ImageManager()
        self._at_the_end = ExitStack()

    def set_device(self):
        self.ttnn_device = self._at_the_end.enter_context(open_device())
        return self.ttnn_device

    def load_weights(self) -> bool:
        """True: the server's main process need not fetch them, `warmup` does."""
        return True

    async def warmup(self) -> bool:
        """Loads the weights and makes one edit, so that the next finds programs and weights in place."""
        pipe = FluxKontextPipeline.from_pretrained(self.settings.model_weights_path, device=self.ttnn_device)
        pipe.set_progress_bar_config(disable=True)
        self.pipeline = MediaServerPipeline(pipe, self.ttnn_device)
        self.pipeline.run_single_prompt(prompt="", num_inference_steps=2, image=Image.new("RGB", (1024, 1024)))
        return True

    @log_execution_time("FLUX.1 Kontext inference", TelemetryEvent.MODEL_INFERENCE)
    def run(self, requests: list) -> list[Image.Image | HTTPException]:
        """The picture that the one request asks for, or why it can't be had.

        What is raised here counts against this process, which the server starts anew after six such errors. What is
        returned goes to the client, an exception too.
        """
        (request,) = requests
        recorder = ImageStageRecorder(self.settings.model_runner, self.device_id, sampler_name(self.pipeline))
        try:
            pictures = self.pipeline.run_single_prompt(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                seed=request.seed or 0,
                on_event=recorder,
                **self._edited(request),
            )
        except REFUSALS as error:
            return [HTTPException(400, str(error))]
        recorder.flush(pictures)
        return pictures

    def _edited(self, request) -> dict:
        """The picture of an image-to-image request; of an edit the mask too, and how much it changes there."""
        if not hasattr(request, "image"):
            return {}
        picture = self._images.base64_to_pil_image(request.image)
        if not hasattr(request, "mask"):
            return {"image": picture}
        mask = self._images.base64_to_pil_image(request.mask, target_mode="L")
        return {"image": picture, "mask_image": mask, "strength": request.strength}

    def close_device(self) -> bool:
        self._at_the_end.close()
        return True
