"""An edit as a row of phases, one after the other on the device."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint.tokenizers import token_ids
from tt_flux_kontext.denoising import Condition, Denoiser, Images, images_of
from tt_flux_kontext.models.transformer import Positions
from tt_flux_kontext.models.vae import to_picture, to_tokens
from tt_flux_kontext.models.weights import download, upload
from tt_flux_kontext.request import Edit
from tt_flux_kontext.residency import EditSize, Models
from tt_flux_kontext.resolution import image_ids, pack_latents, reference_ids
from tt_flux_kontext.step_cache import StepCache
from tt_flux_kontext.turns import finish

TABLE_STEPS = 64  # whose modulation is on the device at a time: 2 MB a step and prompt for Flux


@dataclass(frozen=True)
class Phase:
    """A part of an edit. `step` counts denoising steps from 1 to `steps`; it is 0 in other phases.

    `edit`: its number, from 0, among those that run together.
    """

    name: str
    step: int = 0
    steps: int = 0
    edit: int = 0


class Editor:
    """Runs edits with the models of a checkpoint.

    What one model hands to the next goes through the host, 5 MB of an edit of 1024 x 1024 pixels, since each model is
    split over the chips in a way of its own.

    Args:
        models: of a checkpoint, brought to the device when asked for.
        tokenizer, tokenizer_2: of CLIP and T5, from transformers.

    Attributes:
        mag_ratios: of the last edit with a step cache, see `StepCache.ratios`.
    """

    def __init__(self, models: Models, tokenizer, tokenizer_2):
        self.models = models
        self.device = models.device
        self.tokenizer = tokenizer
        self.tokenizer_2 = tokenizer_2
        self.mag_ratios: list[float] = []

    def run(self, edits: Sequence[Edit], begins: Callable[[str], None] = lambda name: None) -> Iterator[Phase | list]:
        """Runs each phase for all edits before the next one, so that models change places once for all of them.

        `begins` is told the name of each phase before its first weights are loaded.

        Yields each phase when it is on its way, and last the results in the edits' order; for an edit that failed its
        exception. The device works on while the caller does something else, be it to give work to other devices. A
        result is pictures [results, 3, H, W] from -1 to 1, float32, or, without `decode`, the packed latents, float32
        [results, N, C]. Edits wait for their next phase on the host: the device needs memory for one at a time. Raises
        `DoesNotFit` before the first upload when it has too little.
        """
        self.models.reserve(*map(self.size, edits))
        results = [None] * len(edits)
        at_work = {i: self._phases(edit, alone=len(edits) == 1) for i, edit in enumerate(edits)}
        self.models.begin()
        while at_work:
            for i, phases in list(at_work.items()):
                self.models.lora_scale = edits[i].lora_scale
                try:
                    while event := next(phases):
                        if isinstance(event, Phase):
                            yield replace(event, edit=i)
                        else:
                            begins(event)
                    continue
                except StopIteration as end:
                    results[i] = end.value
                except Exception as error:
                    traceback.clear_frames(error.__traceback__)  # their tensors take the device's memory
                    results[i] = error
                del at_work[i]
        yield results

    def _phases(self, edit: Edit, alone: bool) -> Iterator[str | Phase | None]:
        """One edit: the name of each phase as it begins, and the phase when it is on its way.

        Yields None wherever others should come as far before it asks for another model.
        """
        pooled = yield from self._encode_clip(edit)
        yield
        contexts = yield from self._encode_t5(edit)
        yield
        pictures = yield from self._encode_images(edit.pictures)
        yield
        try:
            result = yield from self._denoise(edit, contexts, pooled, pictures, alone)
        finally:
            self.models.parallel["transformer"].mesh.free_buffers()
        if not result.isfinite().all():
            raise FloatingPointError("The edit gave latents that are NaN or infinite, of which no picture can be made.")
        if edit.decode:
            yield
            result = yield from self._decode(result, edit.size)
        return result

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] from -1 to 1 to latents of the transformer, packed: float32 [B, tokens, 4 C].

        For this and for `decode` the models have to `reserve` what they need before.
        """
        self.models.begin()
        (latents,) = finish(self._encode_images([image]))
        return torch.stack(latents)

    def decode(self, latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Packed latents [B, tokens, 4 C] to pictures of `size` (height, width), float32 [B, 3, H, W] from -1 to 1."""
        self.models.begin()
        return finish(self._decode(latents, size))

    def size(self, edit: Edit) -> EditSize:
        """What the edit's memory depends on; its tensors needn't be there yet."""
        text_tokens = max(
            edit.max_sequence_length if text.embeds is None else text.embeds.shape[1] for text in edit.texts
        )
        noise, references = self._grids(edit)
        return EditSize(
            text_tokens=text_tokens,
            image_tokens=sum(rows * columns for rows, columns in (noise, *references)),
            pixels=max(height * width for height, width in (edit.size, *edit.picture_sizes)),
            prompts=len(edit.text) * len(edit.texts),
            results=edit.results,
            steps=min(len(edit.sigmas) - 1, TABLE_STEPS),
            kept=edit.results * len(edit.texts) if edit.step_cache else 0,
            masked=edit.mask is not None,
        )

    def _encode_clip(self, edit: Edit) -> Iterator[str | Phase]:
        """Returns pooled prompts [1, P], the negative ones after the others."""
        yield "clip"
        pooled = []
        for text in edit.texts:
            if text.pooled is not None:
                pooled += text.pooled[:, None]
                continue
            length = self.tokenizer.model_max_length
            rest = f"T5 still reads the first {edit.max_sequence_length}." if text.t5 == text.clip else ""
            ids = token_ids(self.tokenizer, text.clip, length, "CLIP", rest)
            pooled += map(self.models["clip"], ids)
        yield Phase("clip")
        return [matrix if isinstance(matrix, torch.Tensor) else _matrix(matrix) for matrix in pooled]

    def _encode_t5(self, edit: Edit) -> Iterator[str | Phase]:
        """Returns contexts [T, J], the negative ones after the others."""
        ids = [
            row
            for text in edit.texts
            if text.embeds is None
            for row in token_ids(self.tokenizer_2, text.t5, edit.max_sequence_length, "T5")
        ]
        made = iter((yield from self._run("t5", zip(ids), _matrix)))
        return [
            context
            for text in edit.texts
            for context in (islice(made, len(text.t5)) if text.embeds is None else text.embeds)
        ]

    def _encode_images(self, images: Sequence[torch.Tensor]) -> Iterator[str | Phase]:
        """Returns packed latents [R, C] of each, one per picture."""
        are_latents = [image.shape[1] == self.models.vae_config.latent_channels for image in images]
        pictures = [image for image, latents in zip(images, are_latents, strict=True) if not latents]
        made = iter((yield from self._run("vae encoder", zip(chain(*pictures)), to_tokens)))
        return [
            list(pack_latents(image).float()) if latents else list(islice(made, len(image)))
            for image, latents in zip(images, are_latents, strict=True)
        ]

    def _decode(self, latents: torch.Tensor, size: tuple[int, int]) -> Iterator[str | Phase]:
        """Returns pictures [B, 3, H, W]."""
        return torch.stack((yield from self._run("vae decoder", ((row, *size) for row in latents), to_picture)))

    def _run(self, name: str, inputs: Iterable[tuple], fetch: Callable) -> Iterator[str | Phase]:
        """A phase in which a model runs for each of `inputs`. Returns what `fetch` makes of each result on the host."""
        yield name
        fetched, on_its_way = [], []
        for arguments in inputs:
            fetched += map(fetch, on_its_way)  # a replay would write over it
            on_its_way = [self.models.run(name, *arguments)]
        yield Phase(name)
        return [*fetched, *map(fetch, on_its_way)]

    def _denoise(
        self,
        edit: Edit,
        contexts: list[torch.Tensor],
        pooled: list[torch.Tensor],
        pictures: list[list[torch.Tensor]],
        alone: bool,
    ) -> Iterator[str | Phase | None]:
        """All steps, TABLE_STEPS at a time, for which the modulation is on the device first.

        Returns the latents, float32 [results, N, C].
        """
        steps = len(edit.sigmas) - 1
        conditions = [Condition(*pair) for pair in zip(contexts, pooled, strict=True)]
        parallel = self.models.parallel["transformer"]
        yield from self._modulate(edit, conditions, 0)
        if not alone:
            for condition in conditions:
                condition.table = condition.table.moved(ttnn.from_device)
            yield
            for condition in conditions:
                condition.table = condition.table.moved(partial(ttnn.to_device, device=self.device))
        images = images_of(edit, pictures, parallel)
        cache, added, full = None, (), [True] * steps
        if edit.step_cache:
            cache = StepCache(edit.step_cache, images, len(edit.texts), self.models.transformer_config.inner_dim)
            added, full, self.mag_ratios = cache.added, cache.full, cache.ratios
        for first in range(0, steps, TABLE_STEPS):
            some = range(first, min(first + TABLE_STEPS, steps))
            if first:
                yield from self._modulate(edit, conditions, first)
            yield "transformer weights"
            transformer = self.models["transformer"]
            lengths = {len(condition.context) for condition in conditions}
            noise, references = self._grids(edit)
            ids = torch.cat([image_ids(*noise, 0), reference_ids(references, edit.reference_method)])
            config = self.models.transformer_config
            positions = {length: Positions.of(ids, length, config, parallel) for length in lengths}
            for condition in conditions:
                condition.placed = parallel.scatter(condition.context, ttnn.bfloat16)
                condition.positions = positions[len(condition.context)]
            yield Phase("transformer weights")
            yield "step"
            prompts = [conditions[p :: len(edit.text)] for p in range(len(edit.text))]
            with closing(Denoiser(transformer, prompts, images, edit.true_cfg_scale, len(some), added)) as denoiser:
                for step in some:
                    if edit.interrupted():
                        return images.noise()
                    denoiser.step(step - first, *edit.sigmas[step : step + 2], full[step])
                    yield Phase("step", step + 1, steps)
                    if cache:
                        cache.after_step()
                    if edit.callback:
                        self._call_back(edit, step, conditions, images)
            del transformer, denoiser
        return images.noise()

    def _modulate(self, edit: Edit, conditions: list[Condition], first: int) -> Iterator[str | Phase]:
        """Makes the tables of the steps from `first` on."""
        yield "modulation"
        sigmas = edit.sigmas[first:-1][:TABLE_STEPS]
        for condition in conditions:
            condition.table = None  # makes room
            pooled = upload(condition.pooled[None, None], self.device, ttnn.float32)
            condition.table = self.models["modulation"](sigmas, edit.guidance, pooled)
        yield Phase("modulation")

    def _call_back(self, edit: Edit, step: int, conditions: list[Condition], images: Images) -> None:
        """What the callback gets it may also change in place; what it returns goes first."""
        prompts, each = conditions[: len(edit.text)], edit.images_per_prompt
        tensors = {}
        if "latents" in edit.callback_tensors:
            tensors["latents"] = images.noise()
        if "prompt_embeds" in edit.callback_tensors:
            embeds = torch.stack([prompt.context.float() for prompt in prompts])
            tensors["prompt_embeds"] = embeds.repeat_interleave(each, dim=0)
        returned = edit.callback(step, torch.tensor(1000 * edit.sigmas[step]), dict(tensors))
        changed = tensors | (returned or {})
        if "latents" in changed:
            images.replace(_changed("latents", changed["latents"], edit.latents.shape))
        if "prompt_embeds" in changed:
            rows = _changed("prompt_embeds", changed["prompt_embeds"], (edit.results, *prompts[0].context.shape))
            if not torch.equal(rows, rows[::each].repeat_interleave(each, dim=0)):
                raise ValueError("`prompt_embeds` from the callback must be equal for all results of one prompt.")
            for prompt, row in zip(prompts, rows[::each], strict=True):
                prompt.context = row
                images.parallel.write(row, prompt.placed)

    def _grids(self, edit: Edit) -> tuple[tuple[int, int], list[tuple[int, int]]]:
        """(rows, columns) of the noise's tokens, and of each reference's."""
        token = 2 * self.models.vae_config.scale_factor  # pixels along an edge
        sizes = edit.size, *edit.picture_sizes[edit.references]
        noise, *references = ((height // token, width // token) for height, width in sizes)
        return noise, references


def _matrix(made: "ttnn.Tensor") -> torch.Tensor:
    """What a text encoder made [1, 1, rows, features], on the host."""
    return download(made)[0, 0]


def _changed(name: str, tensor, shape: Sequence[int]) -> torch.Tensor:
    """What a callback made of a tensor, in float32. Raises `ValueError` where it can't take its place."""
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != tuple(shape):
        found = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ValueError(f"`{name}` from the callback must be a tensor of shape {list(shape)} but is {found}.")
    if not tensor.isfinite().all():
        raise ValueError(f"`{name}` from the callback has values that are NaN or infinite.")
    return tensor.detach().to("cpu", torch.float32)
