"""Names of number formats and torch's own."""

import torch

_TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`. Raises ValueError for one that KV and computing are not offered in."""
    if name not in _TORCH:
        raise ValueError(f"dtype must be one of {', '.join(_TORCH)}, got {name!r}")
    return _TORCH[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a torch dtype, as configurations write it."""
    return str(dtype).removeprefix("torch.")
