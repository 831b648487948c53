"""FLUX.1 Kontext [dev] on a TT-NN device, with the arguments of diffusers' FluxKontextPipeline."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path

import diffusers
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from loguru import logger
from tqdm.auto import tqdm

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.call import HOST_BYTES_A_PIXEL, Call, noise_shape, read_call
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.checkpoint.tokenizers import load_clip_tokenizer, load_t5_tokenizer
from tt_flux_kontext.edit import Editor, Phase
from tt_flux_kontext.inputs import CALLBACK_TENSORS, check_output_type, check_whole, image_input, noise_input
from tt_flux_kontext.lora.loading import LoraLoaderMixin
from tt_flux_kontext.pictures import float_tensor, is_latents, prepare
from tt_flux_kontext.precision import BF16, PRECISIONS, Policy, policy
from tt_flux_kontext.request import Edit
from tt_flux_kontext.residency import EditSize, Models, check_host_memory
from tt_flux_kontext.resolution import unpack_latents
from tt_flux_kontext.schedule import load_scheduler
from tt_flux_kontext.turns import Turn, finish, one_at_a_time

USUAL_EDIT = EditSize(text_tokens=512, image_tokens=2 * 64 * 64, pixels=1024 * 1024)


class FluxKontextPipeline(LoraLoaderMixin):
    """Edits pictures by instruction, and makes pictures from text, after diffusers' class of that name.

    Args:
        checkpoint: in Hugging Face layout.
        device: an open TT-NN device (`open_device`).
        precision: number formats and math fidelity; by default the most accurate that the device has the memory for,
            with an edit of 1024 x 1024 pixels. The attribute of that name says which.
        split: (SP, TP), chips over which the transformer's tokens and features are split; by default the lengths of
            the longer and the shorter axis of the device's mesh.

    Threads may share it: their calls wait for each other.

    Raises `CheckpointError` when a file is missing, can't be read or doesn't fit its config, and `ValueError` for a
    split that the mesh or the transformer can't take, before anything reaches the device.
    """

    _callback_tensor_inputs = list(CALLBACK_TENSORS)

    def __init__(
        self, checkpoint: Checkpoint, device, precision: Policy | None = None, split: tuple[int, int] | None = None
    ):
        folder = checkpoint.folder
        models = Models(checkpoint, device, precision or BF16, split)
        if precision is None:
            fitting = models.fitting_precision(USUAL_EDIT) or list(PRECISIONS)[-1]
            models = Models(checkpoint, device, PRECISIONS[fitting], split)
        self.precision = models.precision
        self.vae_config = models.vae_config
        self.transformer_config = models.transformer_config
        self.scheduler = load_scheduler(folder / "scheduler")
        clip, t5 = models.configs["text_encoder"], models.t5_config
        self.tokenizer = load_clip_tokenizer(folder / "tokenizer", clip.vocab_size, clip.max_position_embeddings)
        self.tokenizer_2 = load_t5_tokenizer(folder / "tokenizer_2", t5.vocab_size)
        self.multiple_of = 2 * self.vae_config.scale_factor  # pixels along the edge of a token
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.multiple_of)
        self.vae_scale_factor = self.vae_config.scale_factor
        self.timings: dict[str, float] = {}
        self.guidance_scale = self.num_timesteps = None  # of the edit at work, or of the last one
        self._interrupt = False
        self.turn = Turn()
        self._editor = Editor(models, self.tokenizer, self.tokenizer_2)
        self._adapters = models.adapters
        self._progress_bar_config = {}
        self.step_cache: diffusers.MagCacheConfig | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device,
        precision: str | None = None,
        variant: str | None = None,
        split: tuple[int, int] | None = None,
    ) -> "FluxKontextPipeline":
        """From a local folder or a hub id. Weights are read when a phase first needs them.

        `variant`: of the weights' files, such as `fp16` for `model.fp16.safetensors`; components without it have plain
        files, as in diffusers.
        """
        chosen = policy(precision)
        return cls(Checkpoint(source, variant), device, chosen, split)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        config: str | Path = "black-forest-labs/FLUX.1-Kontext-dev",
        text_encoder: str | Path | None = None,
        text_encoder_2: str | Path | None = None,
        vae: str | Path | None = None,
        device,
        precision: str | None = None,
        split: tuple[int, int] | None = None,
    ) -> "FluxKontextPipeline":
        """From a file with the transformer, as Black Forest Labs and ComfyUI have them, or with diffusers' names.

        Files are given by path, by link to the hub, or as `owner/name/file`: safetensors in float32, bfloat16, float16
        or float8 (plain, or scaled in ComfyUI's ways), and for the transformer GGUF too, with the package `gguf`.

        Args:
            pretrained_model_link_or_path: what it holds of the other components is taken too.
            config: folder or hub id that gives all configs, the tokenizers, the scheduler, and the weights that are in
                no file. From the hub no others are fetched.
            text_encoder, text_encoder_2, vae: files of CLIP, T5 and the VAE.

        Raises `CheckpointError` as for a folder, and by its name for a quantisation that is not read.
        """
        chosen = policy(precision)
        others = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "vae": vae}
        return cls(Checkpoint.of_files(pretrained_model_link_or_path, config, others), device, chosen, split)

    @property
    def interrupt(self) -> bool:
        """Set to True, by a callback or another thread, it ends the edit at work after the step at work."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    @property
    def components(self) -> dict:
        """By diffusers' names: scheduler and tokenizers, and the configs of the models, whose weights come and go."""
        own = {"scheduler": self.scheduler, "tokenizer": self.tokenizer, "tokenizer_2": self.tokenizer_2}
        return self._editor.models.configs | own | {"image_encoder": None, "feature_extractor": None}

    def enable_cache(self, config: "diffusers.MagCacheConfig") -> None:
        """Leaves out the transformer's blocks in steps that change little, as diffusers' `transformer.enable_cache`.

        `config.mag_ratios` are a checkpoint's: `KONTEXT_MAG_RATIOS` in `tt_flux_kontext.step_cache` for FLUX.1 Kontext
        [dev]; an edit with `MagCacheConfig(calibrate=True)` leaves out nothing, and has others in `mag_ratios`
        afterwards. Edits must have its `num_inference_steps`. Raises `TypeError` for another kind of cache.
        """
        if not isinstance(config, getattr(diffusers, "MagCacheConfig", ())):  # old versions of diffusers have none
            raise TypeError(f"The step cache is diffusers' MagCacheConfig, not {type(config).__name__}.")
        self.step_cache = config

    def disable_cache(self) -> None:
        self.step_cache = None

    @property
    def is_cache_enabled(self) -> bool:
        return self.step_cache is not None

    @property
    def mag_ratios(self) -> list[float]:
        """Of the last edit that calibrated a step cache, for `MagCacheConfig(mag_ratios=...)`; one for each step."""
        return self._editor.mag_ratios

    def set_progress_bar_config(self, **kwargs) -> None:
        """Of tqdm's bars over the denoising steps and over weights on their way; `disable=True` hides them."""
        self._progress_bar_config = self._editor.models.progress_bar_config = kwargs

    @wraps(read_call, assigned=["__doc__"])
    def dispatch(self, *args, **kwargs) -> Iterator[Phase]:
        (result,) = yield from self.dispatch_calls([read_call(self, *args, **kwargs)])
        if isinstance(result, Exception):
            raise result
        return result

    @one_at_a_time
    @wraps(read_call, assigned=["__doc__"])
    def __call__(self, *args, **kwargs) -> FluxPipelineOutput | tuple:
        return finish(self.dispatch(*args, **kwargs))

    @one_at_a_time
    def edits(self, calls: Sequence[Mapping]) -> list:
        """Makes several edits, each phase for all of them before the next: models that change places do so once.

        The results are those of the calls one by one, whose noise is drawn in their order. Steps are those of one edit
        after the other, so that `interrupt` ends the steps of one edit. Between phases edits wait on the host, and
        `timings` are sums over all of them.

        Args:
            calls: keyword arguments of each call.

        Returns what each call returns, in their order; for one that failed its exception, which is logged too.
        """
        results = []
        for arguments in calls:
            try:
                results.append(read_call(self, **arguments))
            except Exception as error:
                results.append(error)
        asked = [each for each in results if isinstance(each, Call)]
        made = iter(finish(self.dispatch_calls(asked)) if asked else ())
        results = [next(made) if isinstance(each, Call) else each for each in results]
        for number, result in enumerate(results, 1):
            if isinstance(result, Exception):
                logger.error(f"Edit {number} of {len(results)} failed: {result}")
        return results

    @one_at_a_time
    def encode(
        self,
        image,
        height: int | None = None,
        width: int | None = None,
        max_area: int = 1024**2,
        _auto_resize: bool = True,
        background: str | tuple[int, int, int] = "white",
    ) -> torch.Tensor:
        """Latents [B, C, h, w] of pictures, float32, which a call takes as `image` in place of them.

        The arguments, and the size, are those of an edit of these pictures.
        """
        rule = {"auto_resize": _auto_resize, "background": background}
        pictures, _, size = image_input(image, self.vae_config, height=height, width=width, max_area=max_area, **rule)
        if pictures is None or is_latents(pictures, self.vae_config.latent_channels):
            raise ValueError("`image` has to be a picture to be encoded.")
        self._reserve_pictures(len(pictures), size)
        tokens = self._editor.encode(prepare(pictures, size, self.image_processor))
        return unpack_latents(tokens, *size, self.vae_scale_factor, "image")

    @one_at_a_time
    def decode(self, latents: torch.Tensor, height: int, width: int, output_type: str = "pil"):
        """Pictures of packed latents [B, tokens, 4 C], or of latents [B, C, h, w], such as an edit's or `encode`'s.

        Args:
            height, width: of the pictures in pixels.
            output_type: `pil`, `np` [B, H, W, 3] or `pt` [B, 3, H, W].

        Raises `ValueError` or `TypeError` when they don't agree.
        """
        check_output_type(output_type)
        check_whole(self.multiple_of, height=height, width=width)
        if height % self.multiple_of or width % self.multiple_of:
            raise ValueError(
                f"`height` and `width` must be multiples of {self.multiple_of} but are {height} and {width}."
            )
        wanted = noise_shape(self, len(float_tensor(latents, "latents")), (height, width))
        latents = noise_input(latents, wanted, (height, width))
        self._reserve_pictures(len(latents), (height, width))
        pictures = self._editor.decode(latents, (height, width))
        return self.image_processor.postprocess(pictures, output_type=output_type)

    def reserve(self, edit: Edit) -> EditSize:
        """Keeps room on the device for an edit that is to come. Raises `DoesNotFit` where there is none."""
        size = self._editor.size(edit)
        self._editor.models.reserve(size)
        return size

    def _reserve_pictures(self, count: int, size: tuple[int, int]) -> None:
        """Refuses pictures that are too large for the VAE, or for this machine."""
        height, width = size
        check_host_memory(HOST_BYTES_A_PIXEL * count * height * width, f"{count} pictures of {width} x {height} pixels")
        self._editor.models.reserve(EditSize(text_tokens=0, image_tokens=0, pixels=height * width, results=count))

    def dispatch_calls(self, calls: Sequence[Call]) -> Iterator[Phase]:
        """`edits` as a generator, of calls whose arguments have been read, for one who holds the `turn`.

        Yields each phase when it is on its way, then waits for it. Returns the results, or their exceptions. Shows a
        bar over the steps with the phase at work, and notes the seconds of each phase in `timings`.
        """
        self.timings = {}
        start, at_work = time.perf_counter(), 0
        self._begin(calls[at_work])
        steps = sum(len(call.edit.sigmas) - 1 for call in calls)
        with tqdm(total=steps, **self._progress_bar_config) as bar:
            for event in self._editor.run([call.edit for call in calls], bar.set_description):
                if isinstance(event, Phase):
                    if event.edit != at_work:
                        at_work = event.edit
                        self._begin(calls[at_work])
                    yield event
                    ttnn.synchronize_device(self._editor.device)
                    begun, start = start, time.perf_counter()
                    self.timings[event.name] = self.timings.get(event.name, 0.0) + start - begun
                    bar.update(1 if event.step else 0)
            bar.set_description(self._progress_bar_config.get("desc"))
        return [self._output(call, result) for call, result in zip(calls, event, strict=True)]

    def _begin(self, call: Call) -> None:
        """What callbacks see is of the edit at work."""
        self.guidance_scale, self.num_timesteps = call.guidance_scale, len(call.edit.sigmas) - 1
        self._interrupt = False

    def _output(self, call: Call, result: torch.Tensor | Exception):
        """What the call returns."""
        if isinstance(result, Exception):
            return result
        if call.edit.decode:
            pixels = self.image_processor.postprocess(result, output_type="pt")
            if call.paste:
                pixels = call.paste.over(pixels)
            as_they_are = [False] * len(pixels)
            result = self.image_processor.postprocess(pixels, call.output_type, do_denormalize=as_they_are)
        return FluxPipelineOutput(images=result) if call.return_dict else (result,)
