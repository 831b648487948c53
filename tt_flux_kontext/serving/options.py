"""The fields of a request: OpenAI's, and arguments of diffusers' pipelines beside them."""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tt_flux_kontext.serving.errors import ApiError, refused
from tt_flux_kontext.serving.settings import Settings

EDGE = 16  # pixels of a token, of which sizes are multiples
# Why a value that OpenAI's API knows is none here.
_WHY = {
    "background": "results have no transparency",
    "input_fidelity": "the model always sees all of the picture",
    "moderation": "what is filtered is the operator's decision",
    "quality": "what a result costs is said by `num_inference_steps`",
    "response_format": "nothing is kept that a URL could lead to",
    "output_format": "these are the formats that are written",
    "style": "the prompt says it",
    "svg": "results are pixels",
}


class Options(BaseModel):
    """Fields of both kinds of request, by their names there. Raises pydantic's error for any other."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=32000)
    model: str | None = None
    n: int = Field(1, ge=1, le=10)
    size: str = "auto"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    # One value is what happens anyway; the others can't be had.
    background: Literal["auto", "opaque"] = "auto"
    input_fidelity: Literal["high"] = "high"
    moderation: Literal["auto"] = "auto"
    quality: Literal["auto"] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    # For the sender's own books: nothing here depends on them.
    user: str | None = None
    safety_identifier: str | None = None
    # diffusers'
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    true_cfg_scale: float | None = None
    num_inference_steps: int = Field(28, ge=1)
    guidance_scale: float | None = None
    max_sequence_length: int | None = None
    strength: float | None = None
    padding_mask_crop: int | None = None
    reference_method: str | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    lora_scale: float | None = None

    @property
    def prompts(self) -> list[str]:
        """All that the sender says in words."""
        texts = self.prompt, self.prompt_2, self.negative_prompt, self.negative_prompt_2
        return [text for text in texts if text is not None]

    def arguments(self) -> dict:
        """Of the pipeline's call, as far as they have the same name there and were given."""
        given = self.model_dump(include=set(_PASSED), exclude_none=True)
        if self.lora_scale is not None:
            given["joint_attention_kwargs"] = {"scale": self.lora_scale}
        return given


_PASSED = (
    "prompt",
    "prompt_2",
    "negative_prompt",
    "negative_prompt_2",
    "true_cfg_scale",
    "num_inference_steps",
    "guidance_scale",
    "max_sequence_length",
    "strength",
    "padding_mask_crop",
    "reference_method",
)


def read_options(fields: Mapping, settings: Settings) -> Options:
    """Raises `ApiError` for the first field that can't be honoured."""
    try:
        options = Options(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise _explained(error.errors()[0]) from None
    if options.model not in (None, settings.model):
        message = f"There is no model '{options.model}' here, only '{settings.model}'."
        raise ApiError(404, message, param="model", code="model_not_found")
    if options.num_inference_steps > settings.max_steps:
        raise refused(f"`num_inference_steps` may be {settings.max_steps} at most.", "num_inference_steps")
    if options.partial_images and not options.stream:
        raise refused("`partial_images` goes with `stream`.", "partial_images")
    if options.output_compression is not None and options.output_format == "png":
        raise refused("`output_compression` is of jpeg and webp: PNG loses nothing.", "output_compression")
    return options


def read_size(size: str, settings: Settings) -> tuple[int, int] | None:
    """(height, width) of "1024x768"; None for "auto". Raises `ApiError` for any other, and for one too large."""
    if size == "auto":
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if not match:
        raise refused(f"`size` is 'auto' or WIDTHxHEIGHT, such as '1024x1024', not '{size[:40]}'.", "size")
    width, height = map(int, match.groups())
    if not width or not height or width % EDGE or height % EDGE:
        raise refused(f"`size` must be of multiples of {EDGE} pixels but is '{size}'.", "size")
    if max(width, height) > 3 * min(width, height):
        raise refused(f"`size` must have edges of at most 1 to 3 but is '{size}'.", "size")
    if width * height > settings.largest:
        raise refused(f"`size` may have {settings.largest} pixels at most, but '{size}' has {width * height}.", "size")
    return height, width


def _explained(error: Mapping) -> ApiError:
    """Of one of pydantic's errors."""
    name = str(error["loc"][0]) if error["loc"] else None
    if error["type"] == "missing":
        return refused(f"`{name}` is missing.", name, "missing_required_parameter")
    why = f": {_WHY[name]}" if name in _WHY else ""
    if error["type"] == "extra_forbidden":
        return refused(f"There is no field `{name}` here{why}.", name, "unknown_parameter")
    if error["type"] == "literal_error":
        return refused(f"`{name}` can be {error['ctx']['expected']}{why}.", name, "invalid_value")
    message = error["msg"].removeprefix("Input should be ").removeprefix("Value should ")
    return refused(f"`{name}` should be {message}.", name, "invalid_value")
