"""The models of a checkpoint, and which of them have their weights on the device."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from tqdm.auto import tqdm

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.cache_folder import cache_folder
from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.host_memory import HostWeights, host_memory
from tt_flux_kontext.lora.adapters import Adapters, Changes
from tt_flux_kontext.mesh import Mesh, Parallel
from tt_flux_kontext.models.clip import CLIPTextEncoder, clip_config
from tt_flux_kontext.models.modulation import Modulation
from tt_flux_kontext.models.t5 import T5Encoder, t5_config
from tt_flux_kontext.models.transformer import Transformer, TransformerConfig
from tt_flux_kontext.models.vae import Decoder, Encoder, VAEConfig
from tt_flux_kontext.models.weights import Weights, survey
from tt_flux_kontext.precision import PRECISIONS, Policy
from tt_flux_kontext.trace import Replays
from tt_flux_kontext.weight_cache import WeightCache

# Bytes of DRAM that stay from phase to phase whatever the edit: TT-NN's tables of windows, and what banks waste.
LASTING = 126_000_000

# Bytes of DRAM that a trace of a pass through the transformer takes: tt_dit's of FLUX.1, with more operations, was
# 51 MB on four Blackhole chips (tt-inference-server issue 4231).
TRACE = 51_000_000

COMPONENTS = {
    "text_encoder": ("CLIPTextModel", clip_config),
    "text_encoder_2": ("T5EncoderModel", t5_config),
    "transformer": ("FluxTransformer2DModel", TransformerConfig.from_dict),
    "vae": ("AutoencoderKL", VAEConfig.from_dict),
}
"""Of each folder of a checkpoint: the class that its config.json names, and what reads that file's fields."""

MODELS = {
    "clip": ("text_encoder", CLIPTextEncoder),
    "t5": ("text_encoder_2", T5Encoder),
    "vae encoder": ("vae", Encoder),
    "modulation": ("transformer", Modulation),
    "transformer": ("transformer", Transformer),
    "vae decoder": ("vae", Decoder),
}
"""The models in an edit's order, with the component that their weights are part of."""


@dataclass(frozen=True)
class EditSize:
    """What an edit's memory depends on.

    Attributes:
        text_tokens: of T5.
        image_tokens: of noise and references together.
        pixels: of the result or a picture, whichever has most.
        prompts: the negative ones counted too.
        results: pictures.
        steps: whose modulation is on the device at a time.
        kept: of a step cache, passes whose blocks' work is kept.
        masked: whether results keep a part of a picture.
    """

    text_tokens: int
    image_tokens: int
    pixels: int
    prompts: int = 1
    results: int = 1
    steps: int = 28
    kept: int = 0
    masked: bool = False


class DoesNotFit(RuntimeError):
    """The device, or this machine, has too little memory for an edit. The message says what there is and would do."""


def check_host_memory(needed: int, what: str) -> None:
    """Raises `DoesNotFit` for what this machine could not hold even if it were empty."""
    _, total = host_memory()
    if needed > total:
        raise DoesNotFit(
            f"{what} would take about {needed // 10**9} GB of this machine's memory, which has {total / 1e9:.0f} GB."
        )


class _Resident(NamedTuple):
    """A model on the device, the tensors of the checkpoint that it has, and what adapters add to them."""

    model: object
    keys: Collection[str]
    changed_by: str


class Models:
    """Gives the models of MODELS with their weights on the device, where they stay until another one needs the room.

    `split`: chips over which the transformer splits tokens and features, (SP, TP), by default the longer and the
    shorter axis of the mesh. Where it has the residual stream split by features too, the modulation is split like it,
    and else, like the text encoders, by features over the longest axis that they divide by. The VAE is split by rows of
    its maps over the longest axis.

    Loading one that takes more than a second shows a bar; `progress_bar_config` are arguments of tqdm for it.

    Raises `CheckpointError`, before anything reaches the device, when a model's files don't fit its config or the
    models don't fit together, and `ValueError` for a split that the mesh or the transformer can't take.
    """

    def __init__(self, checkpoint: Checkpoint, device, precision: Policy, split: tuple[int, int] | None = None):
        self.device = device
        self.precision = precision
        configs = {name: read(checkpoint.config(name, kind)) for name, (kind, read) in COMPONENTS.items()}
        clip, t5, transformer, vae = configs.values()
        self.configs = configs
        self.t5_config, self.transformer_config, self.vae_config = t5, transformer, vae
        for what, given, wanted in (
            ("in_channels", transformer.in_channels, 4 * vae.latent_channels),
            ("joint_attention_dim", transformer.joint_attention_dim, t5.d_model),
            ("pooled_projection_dim", transformer.pooled_projection_dim, clip.hidden_size),
        ):
            if given != wanted:
                raise CheckpointError(
                    f"The transformer's {what} is {given}, but its neighbour in the pipeline gives {wanted}."
                )
        self._models = {
            name: (component, model_class, configs[component]) for name, (component, model_class) in MODELS.items()
        }
        self.parallel = _splits(Mesh(device), configs, split)
        self._tensors = {component: checkpoint.tensors(component) for component in COMPONENTS}
        self._bytes = self.weight_bytes(precision)
        self._workspace = dict.fromkeys(self._models, 0)
        self._resident: dict[str, _Resident] = {}  # the one used last comes last
        self.adapters = Adapters({component: tensors.entries for component, tensors in self._tensors.items()})
        self.lora_scale = 1.0  # of adapters in the edit at work
        self.bytes_uploaded = 0  # to a chip, of weights, so far
        self._replays = Replays(self.parallel["transformer"].mesh)
        self._host = HostWeights(device)
        self._cache = WeightCache(cache_folder())
        self.progress_bar_config = {}

    @property
    def bytes_on_device(self) -> int:
        """DRAM that the weights on the device take."""
        return sum(self._bytes[name] for name in self._resident)

    def reserve(self, *sizes: EditSize) -> None:
        """Says what the next edits need, one of them at a time, so that models make room for it. Uploads nothing.

        Raises:
            DoesNotFit: one of the models doesn't fit, even alone.
        """
        needed = [self.workspaces(size) for size in sizes]
        self._workspace = {name: max(each[name] for each in needed) for name in self._models}
        _, total = dram_bytes(self.device)
        if _fits(self._bytes, self._workspace, total):
            return
        lines = [
            f"This edit does not fit the device's {total / 1e9:.2f} GB of DRAM in {self.precision.name}:",
            f"  {'model':<14}{'weights':>10}{'activations':>13}{'together':>10}",
        ]
        for name in self._models:
            weights, activations = self._bytes[name], self._workspace[name]
            verdict = "  too much" if weights + activations > total else ""
            figures = f"{weights / 1e9:>7.2f} GB{activations / 1e9:>10.2f} GB{(weights + activations) / 1e9:>7.2f} GB"
            lines.append(f"  {name:<14}{figures}{verdict}")
        fitting = self._fitting(self._workspace)
        if fitting:
            lines.append(f"It fits with precision='{fitting}'.")
        else:
            lines.append("It fits in no precision: make the pictures smaller, or take a device with more memory.")
        raise DoesNotFit("\n".join(lines))

    def begin(self) -> None:
        """Says that edits begin, for which memory was reserved."""
        self._replays.begin(max(self._workspace.values()))

    def fitting_precision(self, size: EditSize) -> str | None:
        """The most accurate precision in which every model fits the device alone, or None."""
        return self._fitting(self.workspaces(size))

    def _fitting(self, workspaces: dict[str, int]) -> str | None:
        _, total = dram_bytes(self.device)
        fitting = (name for name, each in PRECISIONS.items() if _fits(self.weight_bytes(each), workspaces, total))
        return next(fitting, None)

    def weight_bytes(self, precision: Policy) -> dict[str, int]:
        """Bytes of each model's weights on a chip; strict, as `survey` is."""
        sizes = {}
        for component, tensors in self._tensors.items():
            models = {
                name: (*rest, precision.of(name), self.parallel[name])
                for name, (owner, *rest) in self._models.items()
                if owner == component
            }
            sizes |= dict(zip(models, survey(list(models.values()), tensors)))
        return sizes

    def workspaces(self, size: EditSize) -> dict[str, int]:
        """Bytes of a chip's DRAM beside a model's weights, at most: activations, and what the edit keeps meanwhile.

        Bounds found with TT-NN's allocator; tests hold them against it.
        """
        width = self.transformer_config.inner_dim
        tokens, transformer = size.text_tokens + size.image_tokens, self.parallel["transformer"]
        # Around a ring keys and values go, into two buffers each in turn; double blocks have others than single ones.
        passed_around = 0 if transformer.sp == 1 else 16 * tokens * width // transformer.tp
        channels, maps = self.vae_config.block_out_channels[:2], self.parallel["vae encoder"].sp
        # Besides a part of a map there is a mask, and the part is larger than a share where rows don't divide.
        encoder, decoder = (14, 12) if maps == 1 else (20, 16)
        lasting, of_result = LASTING + self._kept(size), 64 * size.results
        # Each prompt has a trace, or with a step cache each result; on a mesh others that begin with other sets of
        # semaphores, of which steps without blocks use some too.
        turns = 1 if transformer.mesh.chips == 1 else 4 if size.kept else 2
        traces = TRACE * max(size.prompts, size.kept) * turns
        kept = 2 * size.kept * size.image_tokens * width // transformer.sp
        return {
            "clip": lasting,
            "t5": lasting + 16 * self.t5_config.num_heads // self.parallel["t5"].tp * size.text_tokens**2,
            "vae encoder": lasting + encoder * channels[0] * size.pixels // maps,
            "modulation": lasting,
            "transformer": lasting + 32 * tokens * width // transformer.sp + passed_around + traces + kept,
            "vae decoder": lasting + (decoder * max(channels) + of_result) * size.pixels // maps,
        }

    def _kept(self, size: EditSize) -> int:
        """Bytes of an edit's own: contexts and modulation tables in bfloat16, latents and references in float32."""
        config = self.transformer_config
        context = size.text_tokens * config.joint_attention_dim
        rows = -(-size.steps // ttnn.TILE_SIZE) * ttnn.TILE_SIZE
        table = rows * config.inner_dim * (12 * config.num_layers + 3 * config.num_single_layers + 2)
        images = 4 * size.results + 6  # one is there in bfloat16 too, with its move
        if size.masked:  # and of each the mask, and the picture and the noise outside it
            images += 6 * size.results
        return 2 * size.prompts * (context + table) + images * size.image_tokens * config.in_channels

    def __getitem__(self, name: str):
        """A model with its weights on the device. Whoever asked for it drops it before asking for another."""
        component, *_ = self._models[name]
        changes = self.adapters.changes(component, self.lora_scale)
        resident = self._resident.pop(name, None)
        if resident and changes.by(resident.keys) != resident.changed_by:
            resident = None
        if resident is None:
            self._replays.forget(name)
        self._make_room(self._workspace[name] + (0 if resident else self._bytes[name]))
        if resident is None:
            resident = self._load(name, changes)
            self.bytes_uploaded += self._bytes[name]
        self._resident[name] = resident
        return resident.model

    def run(self, name: str, *arguments):
        """What a model that is `FromHost` makes of arguments, on the device, until its next run."""
        return self._replays(name, self[name], *arguments)

    def _load(self, name: str, changes: Changes) -> "_Resident":
        component, model_class, config = self._models[name]
        tensors, size, precision = self._tensors[component], self._bytes[name], self.precision.of(name)
        parallel = self.parallel[name]
        if tensors.shapes_only:
            return _Resident(model_class(config, Weights(tensors, precision, parallel)), (), "")

        def build(keep):
            with self._bar(f"{name} weights", size) as bar:
                weights = Weights(tensors, precision, parallel, changes=changes, keep=keep, progress=bar.update)
                keys = weights.ledger.used
                return _Resident(model_class(config, weights), keys, changes.by(keys))

        def load(build):
            return self._cache.build(name, tensors, precision, parallel, size, build, self._bar)

        return self._host.build(name, size, build, load)

    def _bar(self, what: str, size: int) -> tqdm:
        ours = {"desc": what, "total": size, "unit": "B", "unit_scale": True, "delay": 1, "leave": False}
        return tqdm(**self.progress_bar_config | ours)

    def release(self, name: str) -> None:
        """Frees a model's weights."""
        del self._resident[name]
        self._replays.forget(name)

    def _make_room(self, needed: int) -> None:
        """Edits need the models in turn, so the one used last is the one needed last: it goes first."""
        while self._resident and dram_bytes(self.device)[0] < needed:
            self.release(next(reversed(self._resident)))


def _splits(mesh: Mesh, configs: dict, split: tuple[int, int] | None) -> dict[str, Parallel]:
    """By model, how it is split over the mesh."""
    config = configs["transformer"]
    transformer = mesh.split(split or sorted(mesh.shape, reverse=True), config.inner_dim)
    Transformer.check_split(config, transformer.tp)
    # Chips that have features of their own of the stream make those of the vectors that change it.
    modulation = transformer.features() if transformer.fused else mesh.features(partial(Modulation.divides, config))
    return {
        "clip": mesh.features(partial(CLIPTextEncoder.divides, configs["text_encoder"])),
        "t5": mesh.features(partial(T5Encoder.divides, configs["text_encoder_2"])),
        "vae encoder": mesh.tokens(),
        "modulation": modulation,
        "transformer": transformer,
        "vae decoder": mesh.tokens(),
    }


def _fits(weights: dict[str, int], workspaces: dict[str, int], total: int) -> bool:
    """Whether each model fits alone."""
    return all(weights[name] + workspaces[name] <= total for name in weights)
