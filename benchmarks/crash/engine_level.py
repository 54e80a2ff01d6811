"""An engine that is killed while it serves and writes, and what the next one finds."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.tries import EngineTries


class CrashingEngine(EngineTries):
    """An engine with small tiers over more prompts than they hold."""

    num_prompts = 24

    def serve_for_ever(self, directory: Path) -> None:
        """Answer prompts in turn, and say on stdout how many of them are flushed."""
        with self._open(directory, lambda store: store) as engine:
            for turn in itertools.count(1):
                engine.generate([self._prompts[turn % self.num_prompts]], self._params)
                if turn % 3 == 0:
                    engine.flush()
                    print(turn, flush=True)

    def complaints(self, directory: Path, num_flushed: int) -> Iterator[str]:
        """Ask everything anew. What was flushed must be found, and every reply must be right."""
        flushed = {turn % self.num_prompts for turn in range(1, num_flushed + 1)}
        # time enough: on a busy machine a read that is late is computed, and would look like one that found nothing
        with self._open(directory, lambda store: store, deadline_s=10.0) as engine:
            for number, (prompt, right) in enumerate(zip(self._prompts, self._right, strict=True)):
                result = engine.submit(prompt, self._params).result(60)
                whole = (len(prompt) - 1) // self.block_tokens * self.block_tokens
                if result.finish_reason == "error":
                    yield f"prompt {number} failed: {result.error}"
                elif self._said(result) != right:
                    yield f"prompt {number} is answered wrong"
                elif number in flushed and result.usage.cached_tokens < whole:
                    yield f"prompt {number} was flushed; {result.usage.cached_tokens} of its {whole} tokens are found"
            engine.check()
