"""All that a picture depends on."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path


@dataclass(frozen=True)
class File:
    """A file that a picture is made with. Two are the same when their content is.

    `content`: its sha256; the path itself of what is no file here, such as a folder or a hub id.
    """

    path: str = field(compare=False)
    content: str

    @classmethod
    def of(cls, path: str | Path) -> "File":
        return cls(str(path), _sha256(str(path)) if Path(path).is_file() else str(path))


@dataclass(frozen=True)
class Lora:
    file: File
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All that a picture depends on, in the words of the command line.

    Attributes:
        width, height: that were asked for; None for those of the picture to edit.
        precision: None for the most accurate that the device has the memory for; of a result the one that it was.
        max_sequence_length: T5 tokens of the prompt.
        config: folder or hub id beside `weights` of a single file.
        split: chips over which the transformer's tokens and features are split.
        software: that made it.
    """

    prompt: str
    negative_prompt: str | None = None
    true_cfg_scale: float = 1.0
    image: File | None = None
    masks: tuple[File, ...] = ()
    strength: float = 1.0
    references: tuple[File, ...] = ()
    reference_method: str = "offset"
    width: int | None = None
    height: int | None = None
    steps: int = 28
    guidance: float = 2.5
    seed: int = 0
    loras: tuple[Lora, ...] = ()
    max_sequence_length: int = 512
    weights: str
    config: str | None = None
    precision: str | None = None
    device: str
    split: tuple[int, int] | None = None
    software: str = field(default="tt_flux_kontext", compare=False)

    def text(self, size: tuple[int, int]) -> str:
        """In the words that other programs for such pictures use. `size` is the result's (width, height)."""
        named = {
            "Steps": self.steps,
            "Sampler": "Euler",
            "Distilled CFG Scale": self.guidance,
            "Seed": self.seed,
            "Size": f"{size[0]}x{size[1]}",
            "Model": self.weights,
            "Precision": self.precision,
            "Device": self.device,
            "Software": "tt_flux_kontext",
        }
        if self.negative_prompt is not None:
            named["CFG scale"] = self.true_cfg_scale
        if self.masks:
            named |= {"Mask": "yes", "Denoising strength": self.strength}
        if self.references:
            named["References"] = len(self.references)
        if self.loras:
            named["Lora"] = " ".join(f"{Path(lora.file.path).stem}:{lora.scale:g}" for lora in self.loras)
        if self.split:
            named["Split"] = "{}x{}".format(*self.split)
        negative = "" if self.negative_prompt is None else f"\nNegative prompt: {self.negative_prompt}"
        return f"{self.prompt}{negative}\n" + ", ".join(f"{name}: {value}" for name, value in named.items())

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Parameters":
        """Raises `ValueError` for another JSON than `as_json`'s; values are not looked at."""
        known = {each.name for each in fields(cls)}
        try:
            given = json.loads(text)
            if unknown := sorted(set(given) - known):
                raise ValueError(f"it has {', '.join(unknown)}, which {'are' if unknown[1:] else 'is'} no parameter")
            given["image"] = File(**given["image"]) if given.get("image") else None
            for name in ("masks", "references"):
                given[name] = tuple(File(**each) for each in given.get(name, ()))
            given["loras"] = tuple(Lora(File(**each["file"]), each["scale"]) for each in given.get("loras", ()))
            given["split"] = tuple(given["split"]) if given.get("split") else None
            return cls(**given)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"it is not what this program writes ({error})") from error


def _sha256(path: str) -> str:
    sha256 = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            sha256.update(piece)
    return sha256.hexdigest()
