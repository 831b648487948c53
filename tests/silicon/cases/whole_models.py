"""Whole models and an edit, with the demo's weights, against diffusers and transformers in float32.

What they need takes seconds to import. Functions import it, so that a process for one operation need not.
"""

from functools import cache

import numpy as np
import torch
from PIL import Image

from tests.silicon.case import COMPACT, Bench, cases, host
from tests.silicon.rules import AT_MOST, LIKE
from tt_flux_kontext.precision import BF16, Policy
from tt_flux_kontext.resolution import image_ids

BFP8 = Policy("bfp8", {"transformer": COMPACT})
SIGMA, GUIDANCE = 0.7, 2.5
PROMPT, SEED, EDGE = "make the circle red", 0, 128


def models(bench: Bench, policy: Policy = BF16):
    from reference.pipeline import TINY_KONTEXT
    from tt_flux_kontext.checkpoint import Checkpoint
    from tt_flux_kontext.residency import Models

    return Models(Checkpoint(TINY_KONTEXT), bench.device, policy)


@cache
def torch_pipeline():
    from reference.pipeline import TINY_KONTEXT, load

    return load(TINY_KONTEXT)


@cases(LIKE, t5={})
def t5(bench: Bench, ids):
    yield models(bench)["t5"](ids), torch_pipeline().text_encoder_2(ids[None])[0][None]


@cases(AT_MOST, clip={})
def clip(bench: Bench, ids):
    yield models(bench)["clip"](ids), torch_pipeline().text_encoder(ids[None]).pooler_output[None, None]


@cases(LIKE, transformer={}, transformer_bfp8={"policy": BFP8}, transformer_9x9={})
def transformer(bench: Bench, latents, reference, context, pooled, policy=BF16):
    """Velocity of a square of noise beside a reference of that size; all [tokens, features], pooled [features]."""
    from tt_flux_kontext.backend import ttnn
    from tt_flux_kontext.models.transformer import Positions

    side = round(len(latents) ** 0.5)
    ids = torch.cat([image_ids(side, side, index) for index in (0, 1)])
    velocity = (
        torch_pipeline()
        .transformer(
            hidden_states=torch.cat([latents, reference])[None],
            encoder_hidden_states=context[None],
            pooled_projections=pooled[None],
            timestep=torch.tensor([SIGMA]),
            guidance=torch.tensor([GUIDANCE]),
            img_ids=ids,
            txt_ids=torch.zeros(len(context), 3),
        )
        .sample[:, : len(latents)]
    )

    ours = models(bench, policy)
    step = ours["modulation"]([SIGMA], GUIDANCE, bench.put(pooled[None, None, None])).step()
    parallel = ours.parallel["transformer"]
    positions = Positions.of(ids, len(context), ours.transformer_config, parallel)
    placed = [parallel.scatter(x, ttnn.bfloat16) for x in (torch.cat([latents, reference]), context)]
    yield parallel.gather(ours["transformer"](*placed, positions, step))[None, None, : len(latents)], velocity[None]


@cases(AT_MOST, vae_encoder={})
def vae_encoder(bench: Bench, picture):
    """The mean that a picture [3, height, width] is encoded to."""
    mean = torch_pipeline().vae.encode(picture[None]).latent_dist.mode()[0]
    from tt_flux_kontext.backend import ttnn

    encoder = models(bench)["vae encoder"]
    image, rows = encoder.host_input(picture)
    moments = host(encoder.moments(ttnn.to_device(image, encoder.device), rows).values)
    yield moments[0, 0, :, : len(mean)].T.reshape(mean.shape), mean


@cases(AT_MOST, vae_decoder={})
def vae_decoder(bench: Bench, latents):
    """The picture of latents [C, height, width]."""
    from tt_flux_kontext.backend import ttnn
    from tt_flux_kontext.models.feature_map import FeatureMap
    from tt_flux_kontext.models.vae import to_picture

    decoder = models(bench)["vae decoder"]
    rows = decoder.rows(*latents.shape[1:])
    values = ttnn.to_device(rows.on_host(latents.permute(1, 2, 0), ttnn.bfloat16), decoder.device)
    picture = to_picture(decoder.decode(FeatureMap(values, rows.here, rows.width, rows)))
    yield picture, torch_pipeline().vae.decode(latents[None]).sample[0]


@cases(LIKE, edit_of_2_steps={"steps": 2}, edit_of_5_steps={"steps": 5}, third_edit={"steps": 2, "times": 3})
def edit(bench: Bench, steps, times=1):
    """Without a vector. Of 5 steps all but the first are replays of a trace, and of the third edit T5 and the VAE."""
    yield edited_by_ours(bench, steps, times), edited(torch_pipeline(), steps)


def edited_by_ours(bench: Bench, steps: int, times: int = 1) -> torch.Tensor:
    from reference.pipeline import TINY_KONTEXT
    from tt_flux_kontext import FluxKontextPipeline

    pipe = FluxKontextPipeline.from_pretrained(TINY_KONTEXT, device=bench.device, precision=BF16.name)
    pipe.set_progress_bar_config(disable=True)
    return [edited(pipe, steps) for _ in range(times)][-1]


def edited(pipe, steps: int) -> torch.Tensor:
    """The README's example in fewer steps: float32 [height, width, 3] from 0 to 255."""
    from reference.pipeline import TINY_KONTEXT, quiet

    with quiet():
        (picture,) = pipe(
            image=Image.open(TINY_KONTEXT.parent / "pictures/circle.png"),
            prompt=PROMPT,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED),
            max_area=EDGE**2,
            _auto_resize=False,
        ).images
    return torch.from_numpy(np.array(picture, dtype=np.float32))
