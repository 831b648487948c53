"""From parameters to a pipeline, and to the arguments of its calls."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL.Image import Image, Resampling

from tt_flux_kontext.parameters import Parameters

if TYPE_CHECKING:
    from tt_flux_kontext import FluxKontextPipeline

KONTEXT_DEV = "black-forest-labs/FLUX.1-Kontext-dev"
MULTIPLE = 16  # pixels along the edge of a token


def in_a_file(weights: str) -> bool:
    """Whether these are of the transformer in a file, and not a folder or hub id."""
    return weights.lower().endswith((".safetensors", ".gguf"))


def load_pipeline(parameters: Parameters, device) -> "FluxKontextPipeline":
    """With the weights and adapters that are asked for, and bars on a terminal alone.

    Raises what `from_pretrained` and `load_lora_weights` do.
    """
    from tt_flux_kontext import FluxKontextPipeline

    how = {"device": device, "precision": parameters.precision, "split": parameters.split}
    if in_a_file(parameters.weights):
        config = parameters.config or KONTEXT_DEV
        pipe = FluxKontextPipeline.from_single_file(parameters.weights, config=config, **how)
    else:
        pipe = FluxKontextPipeline.from_pretrained(parameters.weights, **how)
    pipe.set_progress_bar_config(disable=None)
    names = [f"lora_{number}" for number in range(len(parameters.loras))]
    for name, lora in zip(names, parameters.loras):
        pipe.load_lora_weights(lora.file.path, adapter_name=name)
    if names:
        pipe.set_adapters(names, [lora.scale for lora in parameters.loras])
    return pipe


def call_arguments(
    parameters: Parameters, image: Image | None, mask: Image | None = None, references: Sequence[Image] = ()
) -> dict:
    """Of a call of the pipeline, with RGB pictures and a mask of any kind.

    With a width and a height the picture is brought to that size, and references to as many pixels; without, they are
    left to the pipeline, which brings them to the sizes that the model was trained on.
    """
    import torch

    from tt_flux_kontext.resolution import output_size

    arguments = {
        "image": image,
        "mask_image": mask,
        "reference_images": list(references),
        "prompt": parameters.prompt,
        "negative_prompt": parameters.negative_prompt,
        "true_cfg_scale": parameters.true_cfg_scale,
        "strength": parameters.strength,
        "reference_method": parameters.reference_method,
        "num_inference_steps": parameters.steps,
        "guidance_scale": parameters.guidance,
        "max_sequence_length": parameters.max_sequence_length,
        "generator": torch.Generator().manual_seed(parameters.seed),
    }
    if parameters.width and parameters.height:
        width, height = parameters.width, parameters.height
        sizes = [output_size(each.height, each.width, width * height, MULTIPLE) for each in references]
        arguments |= {
            "width": width,
            "height": height,
            "max_area": width * height,
            "_auto_resize": False,
            "image": image and image.resize((width, height), Resampling.LANCZOS),
            "reference_images": [each.resize(size[::-1], Resampling.LANCZOS) for each, size in zip(references, sizes)],
        }
    return arguments
