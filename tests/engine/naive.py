"""The smallest driver of Model, Batch and DevicePool: no cache, no scheduler; tests compare against transformers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from engine.chunk import Chunk
from engine.model import Model
from engine.pool import DevicePool


def tokens(seed: int, count: int, vocab: int = 512) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, vocab, count).astype(np.int32)


class Row:
    """One sequence in a pool: its slots, scattered, and what of it the pool holds."""

    def __init__(self, prompt: np.ndarray, slots: np.ndarray) -> None:
        self.tokens = [int(token) for token in prompt]
        self.slots = slots

    def chunk(self, start: int, end: int, *, decode: bool = False) -> Chunk:
        return Chunk(
            tokens=np.array(self.tokens[start:end], dtype=np.int32),
            start=start,
            slots=self.slots,
            wants_logits=end == len(self.tokens),
            decode=decode,
        )


class Driver:
    """Runs rows over a pool whose slots it deals out in a scattered order."""

    def __init__(
        self, model: Model, *, num_slots: int = 256, kv_dtype: str = "float32", deterministic: bool = False
    ) -> None:
        self.model = model
        self.pool = DevicePool(model.layout(kv_dtype, 16), num_slots)
        self.deterministic = deterministic
        self._free = list(np.random.default_rng(1).permutation(num_slots))

    def row(self, prompt: np.ndarray, room: int = 64) -> Row:
        count = -(-(len(prompt) + room) // 16)
        taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count, "the test's pool is too small"
        return Row(prompt, np.array(taken, dtype=np.intp))

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        batch = self.model.batch(chunks, self.pool, deterministic=self.deterministic)
        batch.check(self.pool)
        return self.model.forward(batch, self.pool)

    def prefill(self, row: Row, start: int = 0, chunk_tokens: int = 128) -> torch.Tensor:
        """Logits of the prompt's last token, [1, vocab]; chunks end at multiples of chunk_tokens."""
        logits = torch.empty(0)
        while start < len(row.tokens):
            end = min((start // chunk_tokens + 1) * chunk_tokens, len(row.tokens))
            logits = self.forward([row.chunk(start, end)])
            start = end
        return logits

    def decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """One step of all rows together, [rows, vocab]."""
        return self.forward([row.chunk(len(row.tokens) - 1, len(row.tokens), decode=True) for row in rows])

    def generate(self, rows: Sequence[Row], logits: torch.Tensor, count: int) -> list[list[int]]:
        """`count` greedy tokens of each row, from the logits of its prompt."""
        replies: list[list[int]] = [[] for _ in rows]
        for step in range(count):
            for row, reply, token in zip(rows, replies, logits.argmax(-1).tolist(), strict=True):
                row.tokens.append(token)
                reply.append(token)
            if step < count - 1:
                logits = self.decode(rows)
        return replies


def reference_generate(hf: Any, prompt: np.ndarray, count: int) -> list[int]:
    """What transformers' own generate gives, greedy, over its own cache."""
    with torch.inference_mode():
        out = hf.generate(
            torch.from_numpy(prompt.astype(np.int64))[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return [int(token) for token in out[0, len(prompt) :]]


def reference_logits(hf: Any, prompts: Sequence[np.ndarray]) -> torch.Tensor:
    """What transformers' own forward gives for each prompt's last token, [prompts, vocab]."""
    with torch.inference_mode():
        rows = [hf(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1] for prompt in prompts]
    return torch.stack(rows)
