"""What an adapter adds to a tensor of the checkpoint."""

from dataclasses import dataclass

import torch

from tt_flux_kontext.checkpoint.black_forest_labs import Source


@dataclass(frozen=True)
class LowRank:
    """LoRA (arXiv:2106.09685): up down, of [out, r] and [r, in]."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.up), self.down.shape[1]

    def rows(self, source: Source) -> torch.Tensor:
        """float32, of the rows that `source` names; so are the others' ones."""
        return source.rows(self.up).float() @ self.down.float()


@dataclass(frozen=True)
class Hadamard:
    """LoHa (arXiv:2108.06098): elementwise product of two of low rank."""

    first: LowRank
    second: LowRank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape

    def rows(self, source: Source) -> torch.Tensor:
        return self.first.rows(source) * self.second.rows(source)


@dataclass(frozen=True)
class Kronecker:
    """LoKr (arXiv:2309.14859): Kronecker product of two matrices."""

    first: "LowRank | Whole"
    second: "LowRank | Whole"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(a * b for a, b in zip(self.first.shape, self.second.shape, strict=True))

    def rows(self, source: Source) -> torch.Tensor:
        return source.rows(torch.kron(self.first.rows(ALL), self.second.rows(ALL)))


@dataclass(frozen=True)
class Whole:
    """All of it, such as a bias."""

    value: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def rows(self, source: Source) -> torch.Tensor:
        return source.rows(self.value).float()


ALL = Source("")


@dataclass(frozen=True)
class Change:
    """`scale` times rows of what an adapter has for a module, which may be several of the checkpoint's."""

    added: LowRank | Hadamard | Kronecker | Whole
    scale: float
    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        rows, *rest = self.added.shape
        return rows // self.source.of * len(self.source.parts), *rest

    def added_to(self, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        """The tensor with `factor` times the change, float32."""
        return (factor * self.scale * self.added.rows(self.source)).add_(tensor)
