"""The way to the device: of a parameter from a checkpoint, and of what belongs to one edit."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.checkpoint import CheckpointError, Tensors
from tt_flux_kontext.lora.adapters import UNCHANGED, Changes
from tt_flux_kontext.mesh import Parallel
from tt_flux_kontext.precision import FULL, Precision
from tt_flux_kontext.weight_cache import Changed, Keep, uncached

_TILE_BYTES = {"bfloat16": 2048, "float32": 4096, "bfloat8_b": 1088, "bfloat4_b": 576}


def survey(models: Sequence[tuple[type, object, Precision, Parallel]], tensors: Tensors) -> list[int]:
    """Holds a component's files against the models (class, config, precision, split) that share them. Reads no tensor.

    Returns the bytes that each model's parameters take in a chip's DRAM. Strict: raises `CheckpointError` that names
    all tensors which are missing, unexpected or of another shape than the config asks for, with their files.
    """
    ledgers = []
    for model_class, config, precision, parallel in models:
        weights = Weights(tensors, precision, parallel, place=False)
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
    """What a model asked for: the keys it used, the bytes it takes of a chip, and what was wrong."""

    def __init__(self):
        self.used: set[str] = set()
        self.problems: list[str] = []
        self.bytes = 0


class Weights:
    """The tensors of one model, seen from one of its modules.

    Args:
        tensors: of a component.
        parallel: how the model is split over the device's chips.
        place: False to keep the ledger only, and hand out None: that is how a model is surveyed.
        changes: of adapters, which are merged into the tensors on their way.
        keep: what each parameter goes through on its way to the device.
        progress: called with the bytes of each parameter, once it is there; their sum is what `survey` says.

    Raises `CheckpointError` when a tensor is missing, of another shape, or has values that are no numbers.
    """

    def __init__(
        self,
        tensors: Tensors,
        precision: Precision,
        parallel: Parallel,
        *,
        place: bool = True,
        changes: Changes = UNCHANGED,
        keep: Keep = uncached,
        progress: Callable[[int], object] = lambda size: None,
    ):
        self.tensors = tensors
        self.parallel = parallel
        self.device = parallel.device if place else None
        self.changes = changes
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
        in_features: int | Sequence[int],
        *,
        out_zeros: int = 0,
        in_zeros: int = 0,
        split: str | None = None,
        pieces: int = 1,
    ):
        """Matrices [out, in] of linear layers that share their input, as one [in, sum of out] in tiles.

        `in_features` may be of parts that lie side by side. `out_zeros`: features of zeros behind each matrix's own;
        `in_zeros`: features that the input has besides, behind its first part, and that are multiplied by zero.
        `split`: "columns" gives each chip along TP its share of every matrix's outputs, "rows" of every part's inputs.
        `pieces`: that a matrix's outputs are made of, side by side, each of which "columns" shares out.
        """
        parts = [in_features] if isinstance(in_features, int) else list(in_features)
        columns, rows = (self.parallel.tp if split == way else 1 for way in ("columns", "rows"))

        def build(*matrices: torch.Tensor) -> torch.Tensor:
            stacked = _stacked([_padded(matrix, out_zeros) for matrix in matrices], columns, pieces)
            if rows == 1 and not in_zeros:
                return stacked.T
            first, *others = stacked.T.split(parts)
            return _stacked([_padded(first, in_zeros), *others], rows)

        return self._place(
            names,
            (out_features, sum(parts)),
            build,
            self.precision.linear_weights,
            placed=((sum(parts) + in_zeros) // rows, (out_features + out_zeros) // columns),
            split={"columns": 1, "rows": 0}.get(split),
        )

    def row(
        self,
        names: Sequence[str],
        size: int,
        *,
        zeros: int = 0,
        split: str | None = None,
        pieces: int = 1,
        dtype: str = "bfloat16",
    ):
        """Vectors [size], such as the biases of those layers, as one row [1, sum of sizes] in a row of tiles.

        `split`: "columns" as in `matrix`; "rows" gives it to the first chip along TP, and zeros to the others.
        """
        columns, rows = (self.parallel.tp if split == way else 1 for way in ("columns", "rows"))

        def build(*vectors: torch.Tensor) -> torch.Tensor:
            return _padded(_stacked([_padded(vector, zeros) for vector in vectors], columns, pieces)[None], rows - 1)

        return self._place(
            names,
            (size,),
            build,
            dtype,
            placed=((size + zeros) // columns,),
            split={"columns": 1, "rows": 0}.get(split),
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
        value = _on_host(self._merged(name)).float()
        self.progress(size)
        return value

    def _set_precision(self, precision: Precision) -> None:
        self.precision = precision
        self.compute_config = precision.compute_config(self.device) if self.device else None
        self.norm_config = precision.norm_config(self.device) if self.device else None

    def _place(
        self,
        names: Sequence[str],
        shape: tuple[int, ...],
        build: Callable,
        dtype: str,
        *,
        placed: tuple[int, ...] | None = None,
        split: int | None = None,
        tiled=True,
        on_device=True,
    ):
        """`shape`: of each tensor in the files. `placed`: what it takes of a chip, where that is another.

        `split`: dimension of what `build` makes that goes over the chips along TP.
        """
        rows, columns = (1, *(placed or shape))[-2:]
        tiles = math.ceil(rows / 32) * math.ceil(columns / 32)
        size = tiles * _TILE_BYTES[dtype] if tiled else 2 * math.prod(shape)
        for name in names:
            self._note(name, shape, size)
        if not self.device:
            return None

        def make(read: Callable[[str], torch.Tensor] = self._read) -> "ttnn.Tensor":
            value = build(*map(read, names)).contiguous()
            layout = ttnn.TILE_LAYOUT if tiled else ttnn.ROW_MAJOR_LAYOUT
            if value.is_meta and on_device:  # a plan: the place without the values
                shape = list(value.shape)
                if split is not None:
                    shape[split] //= self.parallel.tp
                return ttnn.empty(shape, dtype=getattr(ttnn, dtype), layout=layout, device=self.device)
            return ttnn.from_torch(
                _on_host(value),
                dtype=getattr(ttnn, dtype),
                layout=layout,
                device=self.device if on_device else None,
                mesh_mapper=None if split is None else self.parallel.mapper(self.parallel.tp_axis, split),
            )

        keys = list(dict.fromkeys(self.prefix + name for name in names))
        what = f"{len(names)} x {list(placed or shape)} {dtype} {'tiles' if tiled else 'rows'} of {' '.join(keys)}"
        by = self.changes.by(keys)
        changed = Changed(by, partial(make, self._merged)) if by else None
        tensor = self.keep(what, make, changed) if on_device else uncached(what, make, changed)
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

    def _merged(self, name: str) -> "torch.Tensor":
        """The same with what adapters add to it."""
        return self.changes.merged(self.prefix + name, self._read(name))

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


def _padded(x: torch.Tensor, zeros: int) -> torch.Tensor:
    """With so many rows of zeros behind it."""
    return torch.cat([x, x.new_zeros(zeros, *x.shape[1:])]) if zeros else x


def _stacked(parts: Sequence[torch.Tensor], shares: int, pieces: int = 1) -> torch.Tensor:
    """Parts one below the other, in equal shares: first the first share of each part, then the second one of each.

    Parts may be cut into `pieces` first.
    """
    parts = [piece for part in parts for piece in part.chunk(pieces)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.unflatten(0, (shares, -1)) for part in parts], 1).flatten(0, 1)


def _on_host(value: torch.Tensor) -> torch.Tensor:
    """A plan's tensors have no values, but some ops prepare theirs on the host: zeros will do."""
    return torch.zeros(value.shape) if value.is_meta else value


def upload(x: torch.Tensor, device, dtype: "ttnn.DataType", *, tiled: bool = True) -> "ttnn.Tensor":
    """A torch tensor of this edit (not a parameter) to the device, whole on each chip."""
    layout = ttnn.TILE_LAYOUT if tiled else ttnn.ROW_MAJOR_LAYOUT
    return ttnn.from_torch(x, dtype=dtype, layout=layout, device=device)


def write(x: torch.Tensor, to: "ttnn.Tensor") -> None:
    """A torch tensor in the place of one of the same shape that `upload` put there."""
    ttnn.copy_host_to_device_tensor(ttnn.from_torch(x, dtype=to.dtype, layout=to.layout), to)


def download(x: "ttnn.Tensor") -> torch.Tensor:
    """What each chip has whole, from the first one."""
    return ttnn.to_torch(ttnn.get_device_tensors(x)[0])
