"""The measuring itself: all systems in one run, one after the other in every round, and only one of them computing."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.peers.ttft.process import Process, SystemFailed
from benchmarks.peers.ttft.prompts import Prompts
from benchmarks.peers.ttft.systems import ROWS, Measured

Tell = Callable[[str], None]
Launch = Callable[[str, Path], Process]


@dataclass(slots=True)
class Row:
    """One row of one system. reason: why it has no figures, if it has none, or no more."""

    system: str
    row: str
    ttft_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    place: dict[str, Any] = field(default_factory=dict)
    """What the system says of where the prefix lay, the last time."""
    reason: str | None = None


class Rounds:
    """All systems, running, and the rows so far. A context manager; leaving it kills what is left of their processes."""

    def __init__(
        self, systems: dict[str, Measured], prompts: Prompts, scratch: Path, launch: Launch, tell: Tell
    ) -> None:
        """`launch` starts a system of that name over a directory of its own."""
        self.facts: dict[str, dict[str, Any]] = {}
        self.rows = {(name, row): Row(name, row) for name, system in systems.items() for row in system.rows}
        self._systems, self._prompts, self._scratch = systems, prompts, scratch
        self._launch, self._tell = launch, tell
        self._running: dict[str, Process] = {}
        self._stack = ExitStack()

    def start(self) -> None:
        """Start every system, one after the other; one that does not start has that as its rows' reason."""
        for name, system in self._systems.items():
            self._tell(f"{system.title} starts")
            start_s = time.monotonic()
            with self._failing(name):
                if system.fresh:
                    with self._launch(name, self._directory(name)) as process:
                        process.ask("prepare", row="device", prefix=self._prompts.prefix, other=[])
                        process.close()
                else:
                    process = self._stack.enter_context(self._launch(name, self._directory(name)))
                    self._running[name] = process
                self.facts[name] = {**process.facts, "start_s": round(time.monotonic() - start_s, 1)}

    def tokenizers(self) -> dict[str, bool]:
        """Whether each system's own tokenizer makes of the text what all are given."""
        text, ids = self._prompts.text, self._prompts.prefix
        same = {}
        for name, process in list(self._running.items()):
            with self._failing(name):
                same[name] = process.ask("tokenize", text=text)["token_ids"][: len(ids)] == ids
        return same

    def measure(self, number: int | None) -> None:
        """Every row once: with the suffix of that round, or for None with the one that warms up and is not kept."""
        suffix = self._prompts.warm_up if number is None else self._prompts.rounds[number]
        for row in ROWS:
            for name, system in self._systems.items():
                if row in system.rows and self.rows[name, row].reason is None:
                    with self._failing(name):
                        self._measure(name, row, suffix, keep=number is not None)

    def _measure(self, name: str, row: str, suffix: list[int], *, keep: bool) -> None:
        system, prompts = self._systems[name], self._prompts
        with ExitStack() as stack:
            if system.fresh:
                process = stack.enter_context(self._launch(name, self._directory(name)))
            else:
                process = self._running[name]
            place = process.ask("prepare", row=system.rows[row], prefix=prompts.prefix, other=prompts.other)
            answer = process.ask("first_token", prompt=[*prompts.prefix, *suffix])
            if system.fresh:
                process.close()
        self._tell(f"{system.title}, {row}: {answer['ttft_s']:.3f} s, first token {answer['token_id']}")
        wanted = 0 if row == "cold" else len(prompts.prefix)
        if answer["cached_tokens"] != wanted:
            raise SystemFailed(f"{row}: {answer['cached_tokens']} tokens were cached, not {wanted}")
        if keep:
            into = self.rows[name, row]
            into.ttft_s.append(answer["ttft_s"])
            into.token_ids.append(answer["token_id"])
            into.cached_tokens.append(answer["cached_tokens"])
            into.place = place

    def _directory(self, name: str) -> Path:
        directory = self._scratch / name
        directory.mkdir(exist_ok=True)
        return directory

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """A system that fails has that as its rows' reason, and is asked nothing any more."""
        try:
            yield
        except SystemFailed as error:
            self._tell(f"{self._systems[name].title}: {error}")
            if name in self._running:
                self._running.pop(name).end()
            for row in self.rows.values():
                if row.system == name:
                    row.reason = str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def close(self) -> None:
        """Have every system end in order: killed, some leave files in shared memory."""
        for name, process in list(self._running.items()):
            with self._failing(name):
                process.close()
