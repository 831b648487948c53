"""The operations behind all vectors, as the models call them: importing this fills `CASES`."""

from tests.silicon.case import CASES
from tests.silicon.cases import attention, convolutions, elementwise, movement, norms, products, whole_models

__all__ = ["CASES", "attention", "convolutions", "elementwise", "movement", "norms", "products", "whole_models"]
