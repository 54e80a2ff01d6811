"""Where the time of a hit goes: clocks around the parts of a model, for as long as somebody looks."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch

from engine import Result
from engine.batch import Batch
from engine.engine import Engine
from engine.gather import Gather
from engine.model import Model

PHASES: Final = {
    "waiting to be admitted": "from submit to admission: the queue, the look-up, leases",
    "loading": "until the last cached block is on the device",
    "laying out the batch": "rows, slots, attention calls and their masks",
    "gathering": "reading the prefix's blocks out of the pool, in the dtype of the computing",
    "attention": "rotary embedding, writing the new blocks, scores, softmax, values",
    "matrix products": "of the layers: projections and feed-forward; with all else that is in a layer, where our kernel computes it",
    "logits": "the last matrix product, of one row",
    "rest of the forward": "embedding, norms, activations, Python between them",
    "rest of the engine": "ordering against copies, publishing, sampling, the answer",
}
"""What the parts are, in the order of the table. They add up to the time to the first token."""


class Clocks:
    """Sums of seconds by what they were spent on, of all forwards since `restart`. Only for a CPU, which computes at once.

    Adds some microseconds to each module of a model: not for repeats whose times count.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sums: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Forget all sums."""
        self._sums = dict.fromkeys(
            ("batch", "forward", "attention", "gather", "inner", "products", "logits"), 0.0
        )

    def phases(self, result: Result) -> dict[str, float]:
        """Seconds by PHASES of the one request since `restart`."""
        sums, timings = self._sums, result.timings
        forward_s = sums["forward"]
        known = {
            "waiting to be admitted": timings.queue_s,
            "loading": timings.load_s,
            "laying out the batch": sums["batch"],
            "gathering": sums["gather"],
            "attention": sums["attention"] - sums["gather"] - sums["inner"],
            "matrix products": sums["products"],
            "logits": sums["logits"],
        }
        known["rest of the forward"] = (
            forward_s - sums["attention"] - (sums["products"] - sums["inner"]) - sums["logits"]
        )
        outside_s = timings.queue_s + timings.load_s + sums["batch"] + forward_s
        known["rest of the engine"] = timings.ttft_s - outside_s
        return {name: known[name] for name in PHASES}

    @contextmanager
    def running(self) -> Iterator["Clocks"]:
        """Clocks are on in the body of the `with`. Nothing may be computing when it begins or ends."""
        model = self._engine.model
        with ExitStack() as stack:
            stack.enter_context(self._batches(model))
            stack.enter_context(self._forwards(model))
            if model.decoder is None:  # which calls no modules, and lets nobody hook them
                self._hook_all(stack, model.hf)
            yield self

    def _hook_all(self, stack: ExitStack, hf: Any) -> None:
        head = hf.get_output_embeddings()
        self._hook(stack, head, "logits")
        for module in hf.modules():
            if type(module).__name__.endswith("Attention"):
                self._hook(stack, module, "attention")
                for part in _products(module):
                    self._hook(stack, part, "inner")
        for part in _products(hf):
            if part is not head:
                self._hook(stack, part, "products")

    def _hook(self, stack: ExitStack, module: torch.nn.Module, name: str) -> None:
        begun_s = 0.0

        def before(*_: Any) -> None:
            nonlocal begun_s
            begun_s = time.perf_counter()

        def after(*_: Any) -> None:
            self._sums[name] += time.perf_counter() - begun_s

        stack.callback(module.register_forward_pre_hook(before).remove)
        stack.callback(module.register_forward_hook(after).remove)

    @contextmanager
    def _forwards(self, model: Model) -> Iterator[None]:
        """Of a decoder's kernel, which has a clock of its own, its parts: transformers' modules are not called then."""
        forward, decoder = model.forward, model.decoder

        def clocked(*given: Any) -> torch.Tensor:
            begun_s = time.perf_counter()
            if decoder is not None:
                decoder.ticks[:], decoder.run_s = 0, 0.0
            logits = forward(*given)
            self._sums["forward"] += time.perf_counter() - begun_s
            if decoder is not None:
                before_s, attention_s, after_s, logits_s = decoder.ticks / decoder.ticks.sum() * decoder.run_s
                self._sums["products"] += before_s + after_s
                self._sums["attention"] += attention_s
                self._sums["logits"] += logits_s
            return logits

        model.forward = clocked  # type: ignore[method-assign, assignment]  # until the class's own shows again
        try:
            yield
        finally:
            del model.forward

    @contextmanager
    def _batches(self, model: Model) -> Iterator[None]:
        lay_out = model.batch

        def clocked(*given: Any, **named: Any) -> Batch:
            begun_s = time.perf_counter()
            batch = lay_out(*given, **named)
            self._sums["batch"] += time.perf_counter() - begun_s
            return dataclasses.replace(batch, gather=_ClockedGather(batch.gather, self._sums))

        model.batch = clocked  # type: ignore[method-assign]  # until the class's own shows again
        try:
            yield
        finally:
            del model.batch


class _ClockedGather(Gather):
    """Reads as another does, and says how long that takes."""

    def __init__(self, gather: Gather, sums: dict[str, float]) -> None:
        super().__init__(torch.device("cpu"))
        self._gather, self._sums = gather, sums

    def read(self, part: str, layer: torch.Tensor, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        begun_s = time.perf_counter()
        found = self._gather.read(part, layer, blocks, dtype)
        self._sums["gather"] += time.perf_counter() - begun_s
        return found


def _products(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    return (part for part in module.modules() if isinstance(part, torch.nn.Linear))
