"""Actions that take long: they are begun, and asked after."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from kvstore.admin import shapes
from kvstore.admin.asking import told
from kvstore.admin.call_threads import CallThreads, TooManyCalls
from kvstore.admin.problems import Problem, busy, not_found
from kvstore.errors import StoreError

KEPT_JOBS = 64
RUNNING_JOBS = 8

_log = logging.getLogger("kvstore.admin")


@dataclass(kw_only=True, slots=True)
class _Job:
    id: str
    kind: shapes.JobKind
    started_s: float
    ended_s: float | None = None
    result: Any = None
    error: str | None = None


class Jobs:
    """The last jobs, running and ended. The event loop's thread uses it; the jobs run on threads of their own.

    Several prompts may be warmed, named or kept at once; of each other kind one runs at a time, since a second one would only wait.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._threads = CallThreads("admin-job", num_threads=RUNNING_JOBS, num_waiting=0)
        self._jobs: dict[str, _Job] = {}
        self._num_started = 0

    @property
    def num_running(self) -> int:
        """Jobs that have not ended."""
        return sum(job.ended_s is None for job in self._jobs.values())

    def start(self, kind: shapes.JobKind, call: Callable[[], Any]) -> shapes.Job:
        """Begin a job, whose result is what the call returns. Raises Problem 409 or 503 if it may not run now."""
        if kind not in ("warm", "cache", "keep"):
            for job in self._jobs.values():
                if job.kind == kind and job.ended_s is None:
                    raise Problem(
                        HTTPStatus.CONFLICT,
                        f"job {job.id} does the same and has not ended",
                        instance=url_of(job.id),
                    )
        try:
            future = self._threads.submit(call)
        except TooManyCalls:
            raise busy(f"{RUNNING_JOBS} jobs run already; try again when one has ended") from None
        self._num_started += 1
        job = _Job(id=f"{kind}-{self._num_started}", kind=kind, started_s=self._clock())
        self._jobs[job.id] = job
        for old in [each.id for each in self._jobs.values() if each.ended_s is not None][
            : max(0, len(self._jobs) - KEPT_JOBS)
        ]:
            del self._jobs[old]
        loop = asyncio.get_running_loop()

        def ended(future: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(self._end, job, future)

        future.add_done_callback(ended)
        return self._told(job)

    def _end(self, job: _Job, future: Future[Any]) -> None:
        job.ended_s = self._clock()
        error = future.exception()
        if error is None:
            job.result = future.result()
        elif isinstance(error, ValueError | KeyError | StoreError | RuntimeError | TimeoutError):
            job.error = told(error)
        else:
            _log.error("job %s failed", job.id, exc_info=error)
            job.error = "something went wrong that should not have; the log says what"

    def get(self, id_: str) -> shapes.Job:
        """One job. Raises Problem 404 if there is none of this id, or it is forgotten."""
        if id_ not in self._jobs:
            raise not_found(f"there is no job with this id; the last {KEPT_JOBS} are kept")
        return self._told(self._jobs[id_])

    def all(self) -> tuple[shapes.Job, ...]:
        """All that are kept, the latest first."""
        return tuple(self._told(job) for job in reversed(self._jobs.values()))

    def close(self) -> None:
        """Begin nothing more; what runs goes on, and nobody waits for it."""
        self._threads.close()

    def _told(self, job: _Job) -> shapes.Job:
        now_s = self._clock()
        ended = job.ended_s is not None
        return shapes.Job(
            id=job.id,
            kind=job.kind,
            state="failed" if job.error is not None else "done" if ended else "running",
            started_ago_s=now_s - job.started_s,
            ended_ago_s=None if job.ended_s is None else now_s - job.ended_s,
            result=job.result,
            error=job.error,
        )


def url_of(id_: str) -> str:
    """Where a job is asked after."""
    return f"/admin/v1/jobs/{id_}"
