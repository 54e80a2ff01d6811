"""Memory for what a step computes on its way."""

import math

import torch


class Workspace:
    """Tensors on the CPU that one layer after the other uses. For one thread, as is the pool's computing."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Of this shape, with whatever is there; the same memory for the same name."""
        num_elements = math.prod(shape)
        found = self._kept.get(name)
        if found is None or found.numel() < num_elements or found.dtype != dtype:
            found = self._kept[name] = torch.empty(num_elements, dtype=dtype)
        return found[:num_elements].view(shape)

    def clear(self) -> None:
        """Give the memory back."""
        self._kept.clear()
