"""A system in a process of its own, which stands still unless it is asked something."""

import json
import os
import selectors
import signal
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers.ttft.protocol import Settings

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 400.0
"""For one answer: vLLM compiles when it starts for the first time."""


class SystemFailed(Exception):
    """A system did not do what it was asked. Says what it said of it."""


class Process:
    """The worker for a system, and all processes that the system starts. A context manager; leaving it ends them."""

    def __init__(self, interpreter: Path, engine: str, settings: Settings, variables: dict[str, str]) -> None:
        """Returns when the system runs. Raises SystemFailed."""
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        # In a group of its own and in our session: if this process ends, the system ends a group that stands still.
        self._process = subprocess.Popen(
            [interpreter, "-m", "benchmarks.peers.ttft.worker", engine, json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            cwd=ROOT,
            env=variables,
            text=True,
            process_group=0,
        )
        try:
            self.facts = self._answer("start")
        except BaseException:
            self.end()
            raise

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """Let the system run until it has answered. Raises SystemFailed, after which it answers nothing any more."""
        assert self._process.stdin is not None, "it is a pipe"
        os.killpg(self._process.pid, signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SystemFailed(self._why(do)) from None
        return self._answer(do)

    def close(self) -> None:
        """Have the system end in order. Raises SystemFailed where it does not."""
        try:
            self.ask("close")
        finally:
            self.end()

    def _answer(self, do: str) -> dict[str, Any]:
        assert self._process.stdout is not None, "it is a pipe"
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(PATIENCE_S):
                raise SystemFailed(f"{do}: no answer in {PATIENCE_S:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise SystemFailed(self._why(do))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SystemFailed(f"{do}: {self._cause(answer['error'])}")
        os.killpg(self._process.pid, signal.SIGSTOP)
        return answer

    def _cause(self, error: str) -> str:
        """An error of a process that the system started names the system's own words, not that process's."""
        self._complaints.seek(0)
        causes = [line for line in self._complaints if "Exception: " in line and "only supported" in line]
        return causes[0].split("Exception: ", 1)[1].strip() if causes else error

    def _why(self, do: str) -> str:
        self._process.wait()
        self._complaints.seek(0)
        said = "".join(self._complaints.readlines()[-3:]).strip()
        return f"{do}: the process ended with {self._process.returncode}: {said}"

    def end(self) -> None:
        """Kill whatever of it there still is. Safe to call twice."""
        if self._complaints.closed:
            return
        for end in (signal.SIGKILL, signal.SIGCONT):
            try:
                os.killpg(self._process.pid, end)
            except ProcessLookupError:
                break
        self._process.communicate()
        self._complaints.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
