"""What a request asks for, and files of what comes of it."""

from dataclasses import dataclass

from PIL import Image

from tt_flux_kontext.credentials import Claim
from tt_flux_kontext.metadata import EDITED, GENERATED
from tt_flux_kontext.serving.options import Options
from tt_flux_kontext.serving.pictures import to_file


@dataclass(frozen=True)
class Kind:
    """Of requests. `event`: what OpenAI's events of it are called. `source`: of its pictures, for their files."""

    route: str
    event: str
    source: str


EDITS = Kind("edits", "image_edit", EDITED)
GENERATIONS = Kind("generations", "image_generation", GENERATED)


@dataclass(frozen=True)
class Order:
    """What is to be made, and signed.

    `size`, (height, width), is the model's; result i is made from the noise of `seed` + i.
    """

    kind: Kind
    options: Options
    size: tuple[int, int]
    seed: int
    claim: Claim | None
    begun: float

    def described(self, picture: Image.Image) -> dict:
        """What an answer, or an event, says of a picture."""
        size = f"{picture.width}x{picture.height}"
        return {"background": "opaque", "output_format": self.options.output_format, "size": size}

    def file(self, picture: Image.Image, index: int, model: str) -> bytes:
        """A result's."""
        options = self.options
        fields = {
            "Steps": options.num_inference_steps,
            "Sampler": "Euler",
            "Seed": self.seed + index,
            "Size": f"{picture.width}x{picture.height}",
            "Model": model,
            "Software": "tt_flux_kontext",
        }
        if options.guidance_scale is not None:
            fields["Distilled CFG Scale"] = options.guidance_scale
        parameters = f"{options.prompt}\n" + ", ".join(f"{name}: {value}" for name, value in fields.items())
        how = options.output_format, options.output_compression
        return to_file(picture, *how, parameters, self.kind.source, self.claim)
