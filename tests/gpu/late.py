"""Streams that are late on purpose: what does not wait for them comes too early, and is seen."""

import time
from functools import partial
from typing import Any

import torch

LATE_S = 0.01
_CYCLES = int(LATE_S * 1.5e9)  # of a GPU's clock


class LateCopies:
    """A `Device` whose copy streams are busy for a while before each copy."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.num_late = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def copy(self, stream: Any, *what: Any) -> None:
        self.num_late += 1
        if hasattr(stream, "handle"):
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
                torch.cuda._sleep(_CYCLES)
        elif stream is not None:
            stream.put(partial(time.sleep, LATE_S))
        self.device.copy(stream, *what)


def late_steps(engine: Any, monkeypatch: Any) -> None:
    """Keep a GPU's compute stream busy before each step. On a CPU a step has ended when it returns: nothing to do."""
    if engine.model.device.type != "cuda":
        return
    forward = engine.model.forward

    def late(*what: Any, **more: Any) -> Any:
        torch.cuda._sleep(_CYCLES)
        return forward(*what, **more)

    monkeypatch.setattr(engine.model, "forward", late)
