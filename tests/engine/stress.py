"""Many requests from many threads, some called off, and what must be left of them afterwards: nothing."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine import SamplingParams
from engine.engine import Engine
from engine.handle import Handle

GIVE_UP_S = 120.0  # a request that is right never takes so long


@dataclass
class Report:
    """What became of the requests."""

    requests: int = 0
    cancelled: int = 0
    failed: int = 0
    wrong: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    disk_tokens_by_third: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Prompt tokens that came from disk, in each third of the answers."""
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """All but the complaints."""
        return {name: value for name, value in asdict(self).items() if name != "complaints"}


class Stress:
    """Threads that keep requests in flight: `prompts`, and the tokens that must follow each."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[list[int]],
        right: Sequence[list[int]],
        *,
        in_flight: int,
        after_answer: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`after_answer` is told how many requests have been answered, after each of them and one at a time."""
        self.engine, self.prompts, self.right, self.in_flight = engine, prompts, right, in_flight
        self.report = Report()
        self._after_answer = after_answer
        self._num_requests = 0
        self._lock = threading.Lock()

    def run(self, num_requests: int, *, num_threads: int, seed: int) -> Report:
        """Serve so many requests, `in_flight` of them at a time."""
        start_s = time.monotonic()
        self._num_requests = num_requests
        threads = [
            threading.Thread(
                target=self._work,
                args=(
                    random.Random(f"{seed} {number}"),
                    num_requests // num_threads,
                    self.in_flight // num_threads,
                ),
            )
            for number in range(num_threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.report.seconds = round(time.monotonic() - start_s, 1)
        return self.report

    def _work(self, rng: random.Random, num_requests: int, in_flight: int) -> None:
        try:
            pending: deque[tuple[Handle, int, int]] = deque()
            for _ in range(num_requests):
                if len(pending) == in_flight:
                    self._take(*pending.popleft())
                pending.append(self._submit(rng))
            while pending:
                self._take(*pending.popleft())
        except Exception as error:  # noqa: BLE001 - the thread's top: told in the report
            with self._lock:
                self.report.complaints.append(repr(error))

    def _submit(self, rng: random.Random) -> tuple[Handle, int, int]:
        which = rng.randrange(len(self.prompts))
        longest = len(self.right[which])
        num_tokens = rng.randint(1, longest if rng.random() < 0.2 else longest // 10)  # few are long
        handle = self.engine.submit(
            self.prompts[which], SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        )
        if rng.random() < 0.2:
            if rng.random() < 0.5:  # while it runs, if it does so soon
                threading.Event().wait(rng.random() * 0.05)
            handle.cancel()
        return handle, which, num_tokens

    def _take(self, handle: Handle, which: int, num_tokens: int) -> None:
        result = handle.result(GIVE_UP_S)
        expected = self.right[which][: len(result.token_ids)]
        with self._lock:
            third = 3 * self.report.requests // self._num_requests
            self.report.disk_tokens_by_third[third] += result.usage.cached_by_tier["disk"]
            self.report.requests += 1
            self.report.tokens += len(result.token_ids)
            self.report.cached_tokens += result.usage.cached_tokens
            self.report.prompt_tokens += result.usage.prompt_tokens
            self.report.cancelled += result.finish_reason == "cancelled"
            if result.finish_reason == "error":
                self.report.failed += 1
                self.report.complaints.append(str(result.error))
            if result.token_ids != expected or (
                result.finish_reason == "length" and len(expected) != num_tokens
            ):
                self.report.wrong += 1
                self.report.complaints.append(f"prompt {which}: {result.token_ids}, not {expected}")
            self._after_answer(self.report.requests)


def leaks_of(engine: Engine) -> dict[str, int]:
    """What is still held although nobody runs; the engine's loop must be asleep."""
    engine.check()
    stats = engine.stats()
    tiers = stats["cache"]["tiers"]
    held = {
        "running": stats["engine"]["running"],
        "waiting": stats["engine"]["waiting"],
        "leases": stats["cache"]["leases"],
        "private_device_slots": tiers["device"]["private"],
        "private_host_slots": tiers["host"]["private"],
        "moving_device_slots": tiers["device"]["in_flight"],
        "moving_host_slots": tiers["host"]["in_flight"],
        "overdue_reads": tiers["disk"]["overdue_reads"],
        "readers": int(engine._cache._index._holdings.residency.readers.sum()),
    }
    return {name: num for name, num in held.items() if num}


def leaks_when_settled(engine: Engine) -> dict[str, int]:
    """The same, once what is still moving has come to its end."""
    deadline_s = time.monotonic() + GIVE_UP_S
    while (leaks := leaks_of(engine)) and time.monotonic() < deadline_s:
        threading.Event().wait(0.01)
    return leaks


def num_descriptors() -> int:
    """Open files of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def idle_cpu_share(seconds: float) -> float:
    """How busy this process is while nothing is asked of it; 1.0 is one core."""
    before_s = time.process_time()
    threading.Event().wait(seconds)
    return (time.process_time() - before_s) / seconds
