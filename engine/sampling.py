"""Choosing the next token from logits."""

import numpy as np
import torch
from numpy.typing import NDArray


def greedy(logits: torch.Tensor) -> NDArray[np.int32]:
    """The most probable token of each row of [rows, vocab], int32 [rows]; the smallest id where several tie.

    Waits for the device that computes the logits.
    """
    return logits.argmax(dim=-1).to(device="cpu", dtype=torch.int32).numpy()
