"""The way to the device: of a parameter from a checkpoint, and of what belongs to one edit."""

import copy
import math
from collections.abc import Callable, Sequence

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint import CheckpointError, TensorFiles
from tt_flux_kontext.precision import FULL, Precision
from tt_flux_kontext.weight_cache import Keep, uncached

_TILE_BYTES = {"bfloat16": 2048, "float32": 4096, "bfloat8_b": 1088, "bfloat4_b": 576}


def survey(models: Sequence[tuple[type, object, Precision]], tensors: TensorFiles) -> list[int]:
    """Holds a component's files against the models (class, config, precision) that share them; reads no tensor.

    Returns the bytes that each model's parameters take in DRAM. Strict: raises `CheckpointError` that names all tensors
    which are missing, unexpected or of another shape than the config asks for, with their files.
    """
    ledgers = []
    for model_class, config, precision in models:
        weights = Weights(tensors, precision)
        model_class(config, weights)
        ledgers.append(weights.ledger)
    problems = [problem for ledger in ledgers for problem in ledger.problems]
    used = set().union(*(ledger.used for ledger in ledgers))
    problems += [
        f"unexpected: {key} {list(entry.shape)} in {entry.file.name}"
        for key, entry in tensors.entries.items()
        if key not in used
    ]
    if problems:
        raise CheckpointError(f"{tensors.folder} does not fit its config.json:\n  " + "\n  ".join(problems))
    return [ledger.bytes for ledger in ledgers]


class _Ledger:
    """What a model asked for: the keys it used, the bytes it takes, and what was wrong."""

    def __init__(self):
        self.used: set[str] = set()
        self.problems: list[str] = []
        self.bytes = 0


class Weights:
    """The tensors of one model, seen from one of its modules.

    Without a device it only keeps the ledger, and what it hands out is None: that is how a model is surveyed.

    Args:
        tensors: of a component.
        keep: what each parameter goes through on its way to the device.
        progress: called with the bytes of each parameter, once it is there; their sum is what `survey` says.

    Raises `CheckpointError` when a tensor is missing, of another shape, or has values that are no numbers.
    """

    def __init__(
        self,
        tensors: TensorFiles,
        precision: Precision,
        device=None,
        *,
        keep: Keep = uncached,
        progress: Callable[[int], object] = lambda size: None,
    ):
        self.tensors = tensors
        self.device = device
        self.keep = keep
        self.progress = progress
        self.prefix = ""
        self.ledger = _Ledger()
        self._set_precision(precision)

    def at(self, name: str) -> "Weights":
        """The same weights, seen from the submodule `name`."""
        part = copy.copy(self)
        part.prefix = f"{self.prefix}{name}."
        return part

    def full(self) -> "Weights":
        """The same weights in FULL, for layers that are small and that the result depends on."""
        part = copy.copy(self)
        part._set_precision(FULL)
        return part

    def matrix(
        self,
        names: Sequence[str],
        out_features: int,
        in_features: int,
        *,
        out_zeros: int = 0,
        in_zeros: tuple[int, int] = (0, 0),
    ):
        """Matrices [out, in] of linear layers that share their input, as one [in, sum of out] in tiles.

        `out_zeros`: features of zeros behind each matrix's own; `in_zeros`: (at, count) of features that the input has
        besides, and that the matrices multiply by zero.
        """
        at, count = in_zeros

        def build(*parts: torch.Tensor) -> torch.Tensor:
            if count:
                parts = [
                    torch.cat([part[:, :at], part.new_zeros(out_features, count), part[:, at:]], 1) for part in parts
                ]
            return _stacked(parts, out_zeros).T

        return self._place(
            names,
            (out_features, in_features),
            build,
            self.precision.linear_weights,
            placed=(out_features + out_zeros, in_features + count),
        )

    def row(self, names: Sequence[str], size: int, *, zeros: int = 0):
        """Vectors [size], such as the biases of those layers, as one row [1, sum of sizes] in a row of tiles."""
        return self._place(
            names, (size,), lambda *parts: _stacked(parts, zeros)[None], "bfloat16", placed=(size + zeros,)
        )

    def table(self, name: str, rows: int, width: int):
        """An embedding table [rows, width], row-major."""
        return self._place([name], (rows, width), lambda table: table, "bfloat16", tiled=False)

    def host(self, name: str, shape: tuple[int, ...], view: tuple[int, ...] | None = None):
        """A tensor that stays on the host, since its op prepares it for the device itself (`ttnn.conv2d`)."""
        return self._place([name], shape, lambda x: x.reshape(view or shape), "bfloat16", tiled=False, on_device=False)

    def either(self, *names: str) -> str:
        """The first of these names that the checkpoint has. The others, tied to it or left over, are not unexpected."""
        self.ledger.used.update(self.prefix + name for name in names)
        return next((name for name in names if self.prefix + name in self.tensors.entries), names[0])

    def torch(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        """A tensor as it is in the file, for a function of TT-NN that takes torch tensors."""
        size = 2 * math.prod(shape)
        self._note(name, shape, size)
        if not self.device:
            return None
        value = _on_host(self._read(name)).float()
        self.progress(size)
        return value

    def _set_precision(self, precision: Precision) -> None:
        self.precision = precision
        self.compute_config = precision.compute_config(self.device) if self.device else None
        self.norm_config = precision.norm_config(self.device) if self.device else None

    def attention_config(self, head_dim: int):
        """Program config of scaled dot-product attention."""
        return self.precision.attention_config(self.device, head_dim) if self.device else None

    def _place(
        self,
        names: Sequence[str],
        shape: tuple[int, ...],
        build: Callable,
        dtype: str,
        *,
        placed: tuple[int, ...] | None = None,
        tiled=True,
        on_device=True,
    ):
        """`shape`: of each tensor in the files. `placed`: what it takes on the device, where that is more."""
        rows, columns = (1, *(placed or shape))[-2:]
        tiles = math.ceil(rows / 32) * math.ceil(columns / 32)
        size = tiles * _TILE_BYTES[dtype] if tiled else 2 * math.prod(shape)
        for name in names:
            self._note(name, shape, size)
        if not self.device:
            return None

        def make() -> "ttnn.Tensor":
            value = build(*map(self._read, names)).contiguous()
            layout = ttnn.TILE_LAYOUT if tiled else ttnn.ROW_MAJOR_LAYOUT
            if value.is_meta and on_device:  # a plan: the place without the values
                return ttnn.empty(list(value.shape), dtype=getattr(ttnn, dtype), layout=layout, device=self.device)
            return ttnn.from_torch(
                _on_host(value), dtype=getattr(ttnn, dtype), layout=layout, device=self.device if on_device else None
            )

        keys = " ".join(dict.fromkeys(self.prefix + name for name in names))
        what = f"{len(names)} x {list(placed or shape)} {dtype} {'tiles' if tiled else 'rows'} of {keys}"
        tensor = self.keep(what, make) if on_device else make()
        self.progress(len(names) * size)
        return tensor

    def _read(self, name: str) -> "torch.Tensor":
        """A tensor of the files, of numbers only."""
        key = self.prefix + name
        value = self.tensors.read(key)
        # Its extremes are numbers if all of it is; unlike torch.isfinite of it all they take no memory.
        if not value.is_meta and not all(extreme.isfinite() for extreme in value.aminmax()):
            file = self.tensors.entries[key].file
            raise CheckpointError(f"{key} in {file} has values that are NaN or infinite. Fetch the file again.")
        return value

    def _note(self, name: str, shape: tuple[int, ...], size: int) -> None:
        """Checks a tensor of the files against the shape asked for, and counts its bytes on the device."""
        key = self.prefix + name
        entry = self.tensors.entries.get(key)
        problem = None
        if entry is None:
            problem = f"missing: {key} {list(shape)}"
        else:
            entry.check_dtype(key)
        if entry and entry.shape != shape:
            problem = f"wrong shape: {key} {list(entry.shape)} in {entry.file.name}, not {list(shape)}"
        if problem and self.device:
            raise CheckpointError(f"{self.tensors.folder}: {problem}")
        if problem:
            self.ledger.problems.append(problem)
        self.ledger.used.add(key)
        self.ledger.bytes += size


def _stacked(parts: Sequence[torch.Tensor], zeros: int = 0) -> torch.Tensor:
    """One below the other, each with rows of zeros behind it; a single one without them is not copied."""
    if zeros:
        parts = [torch.cat([part, part.new_zeros(zeros, *part.shape[1:])]) for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _on_host(value: torch.Tensor) -> torch.Tensor:
    """A plan's tensors have no values, but some ops prepare theirs on the host: zeros will do."""
    return torch.zeros(value.shape) if value.is_meta else value


def upload(x: torch.Tensor, device, dtype: "ttnn.DataType", *, tiled: bool = True) -> "ttnn.Tensor":
    """A torch tensor of this edit (not a parameter) to the device."""
    layout = ttnn.TILE_LAYOUT if tiled else ttnn.ROW_MAJOR_LAYOUT
    return ttnn.from_torch(x, dtype=dtype, layout=layout, device=device)
