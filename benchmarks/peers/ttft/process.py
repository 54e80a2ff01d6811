"""A system in a process of its own, which stands still unless it is asked something."""

import json
import os
import re
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 900.0
"""For one answer: vLLM compiles when it starts for the first time."""


_OTHERS_ERROR = re.compile(r"\([^)]*pid=\d+\).* ((?:\w+Error|Exception): .*)")
"""As vLLM's processes write them."""


class SystemFailed(Exception):
    """A system did not do what it was asked. Says what it said of it."""


class Process:
    """The worker for a system, and all processes that the system starts. A context manager; leaving it ends them."""

    def __init__(self, command: Sequence[str | Path], variables: Mapping[str, str]) -> None:
        """Returns when the system runs. Raises SystemFailed."""
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        # In a group of its own and in our session: where this process ends, the kernel ends a group that stands still.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            cwd=ROOT,
            env=dict(variables),
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
            raise SystemFailed(f"{do}: {self._cause() or answer['error']}")
        os.killpg(self._process.pid, signal.SIGSTOP)
        # else it may compute a little more
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return answer

    def _cause(self) -> str | None:
        """What a process that the system started said first of all errors: the system itself may only say that it ended."""
        self._complaints.seek(0)
        return next((found[1] for line in self._complaints if (found := _OTHERS_ERROR.match(line))), None)

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
