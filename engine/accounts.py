"""What became of requests: figures, the last of them one by one, and what their misses cost. Worked out off the loop."""

import logging
import math
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from kvstore.histogram import Histogram
from kvstore.reasons import MissReason
from kvstore.reports import Advice, Explanation, RequestReport
from tiering.recording import Recording, Served

from .costs import Costs
from .explainer import CacheReport
from .request import Request

_log = logging.getLogger(__name__)

_MOST_ENDED: Final = 1000
_MOST_HELD_TOKENS: Final = 1 << 22
"""Of prompts whose differences can still be put into words; of those that ended before, the outline is left."""

_DESCRIBING_SHARE: Final = 0.02
"""Of the time, on a thread of its own, for what differences look like: it keeps other Python from running."""

_SETTLE_S: Final = 5.0
"""For how long who asks waits for what has ended to be taken in: longer only if it hangs, as in a read of the disk."""

_SERVED_BY: Final = ("none", "device", "host", "disk")


@dataclass(slots=True)
class _Ended:
    report: RequestReport
    """Without an explanation."""
    submitted_s: float
    tenant: str | None
    outline: Explanation | None
    in_full: CacheReport | None
    num_tokens: int

    def forget_text(self) -> None:
        self.in_full = None
        if self.outline is not None:
            self.outline = self.outline.without_text()


class Accounts:
    """Takes in requests as they come and end. Any thread may call all of it; `ended` does no more than post.

    A thread of its own explains what has ended and adds it up. Whoever asks for figures waits until it has done so with
    all that had ended by then, so that what a caller has seen the end of is counted. Nobody waits for it to submit.
    """

    def __init__(self, note: Callable[..., object], served: Callable[[Request], Served]) -> None:
        """`note` is told of each request that ended, in plain values by name; `served` says what recordings have of it."""
        self._note, self._served = note, served
        self._recordings: tuple[Recording, ...] = ()
        self._over: queue.SimpleQueue[Request | threading.Event | None] = queue.SimpleQueue()
        """What has ended, and who waits until what is before has been taken in; None is the end."""
        self._closed = False
        self._awaited = threading.Event()
        """Set once the last one has been taken in that somebody has waited for to no avail."""
        self._awaited.set()
        self._lock = threading.Lock()
        """Of everything below; held for no longer than it takes to look something up or to count."""
        self._alive: dict[int, Request] = {}
        self._ended: OrderedDict[int, _Ended] = OrderedDict()
        """The last that ended."""
        self._held: deque[_Ended] = deque()
        """Those of them that can still be explained in full, and tokens of their prompts."""
        self._held_tokens = 0
        self._missed = dict.fromkeys(MissReason, 0)
        self._replies = dict.fromkeys(("stop", "length", "cancelled", "timeout", "error"), 0)
        self._ttft = {tier: Histogram() for tier in _SERVED_BY}
        self._queue, self._load = Histogram(), Histogram()
        self._costs = Costs()
        # of the thread alone
        self._describe_again_s = 0.0
        self._num_to_describe = 0
        """Requests with a difference since one was last looked at: the next stands for all of them."""
        self._thread = threading.Thread(target=self._run, name="kvtide-accounts", daemon=True)
        self._thread.start()

    # --- what happens ---------------------------------------------------------------------------------------------

    @contextmanager
    def coming(self, requests: Sequence[Request]) -> Iterator[None]:
        """Submit requests in the body of the `with`: they are there before they can end, or not at all if it raises."""
        numbered = {request.number: request for request in requests}
        with self._lock:
            self._alive.update(numbered)
        try:
            yield
        except BaseException:
            with self._lock:
                for number in numbered:
                    del self._alive[number]
            raise

    def ended(self, request: Request) -> None:
        """It has its last sample. Posts, and does not wait."""
        self._over.put(request)

    def close(self) -> None:
        """No more will end. What has ended is taken in, unless that hangs. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._over.put(None)
        self._thread.join(_SETTLE_S)
        for recording in self._recordings:
            recording.close()

    def record(self, recording: Recording) -> None:
        """Tell this one too of what ends, until it is over. Closing the accounts closes it, at once if they are closed."""
        with self._lock:
            if not self._closed:
                self._recordings = (*(each for each in self._recordings if each.ended is None), recording)
                return
        recording.close()

    def _run(self) -> None:
        while (over := self._over.get()) is not None:
            if isinstance(over, threading.Event):
                over.set()
                continue
            try:
                self._take(over)
            except Exception:  # noqa: BLE001 - the thread's top: the next one is to be counted all the same
                _log.exception("a request is not accounted for", extra={"request": over.number})

    def settle(self) -> None:
        """Wait until what has ended by now is taken in. Not for long, and not at all where that was not enough before."""
        taken_in = threading.Event()
        with self._lock:
            if self._closed or not self._awaited.is_set():
                return
            self._over.put(taken_in)
        if not taken_in.wait(_SETTLE_S):
            self._awaited = taken_in

    def _take(self, request: Request) -> None:
        report, cache_report = self._report(request), request.cache_report
        outline = None if cache_report is None else _worked_out(cache_report.outline, request.number)
        tenant, submitted_s = request.options.tenant, request.marks.submitted_s
        with self._lock:
            self._alive.pop(request.number, None)
            self._remember(_Ended(report, submitted_s, tenant, outline, cache_report, report.prompt_tokens))
            self._count(request, report, outline)
            recordings = self._recordings
            running = next(iter(self._alive.values()), None)  # they stand in the order of their coming
        for recording in recordings:
            recording.offer(self._served(request), math.inf if running is None else running.marks.submitted_s)
        self._tell(report)
        if outline is not None and outline.difference is not None and cache_report is not None:
            self._add_cost(report, cache_report)

    def _remember(self, ended: _Ended) -> None:
        self._ended[ended.report.number] = ended
        if len(self._ended) > _MOST_ENDED:
            self._ended.popitem(last=False)
        self._held.append(ended)
        self._held_tokens += ended.num_tokens
        while self._held_tokens > _MOST_HELD_TOKENS or len(self._held) > _MOST_ENDED:
            oldest = self._held.popleft()
            oldest.in_full = None
            self._held_tokens -= oldest.num_tokens

    def _count(self, request: Request, report: RequestReport, outline: Explanation | None) -> None:
        for sample in request.samples.values():
            self._replies[sample.finish_reason] += 1
        if report.queue_s is not None:
            self._queue.add(report.queue_s)
        if report.load_s is not None:
            self._load.add(report.load_s)
        if report.ttft_s is not None:
            served = [tier for tier, num in report.cached_by_tier.items() if num]
            self._ttft[max(served, key=_SERVED_BY.index, default="none")].add(report.ttft_s)
        if outline is not None:
            for reason, num_tokens in outline.reasons.items():
                self._missed[reason] += num_tokens

    def _tell(self, report: RequestReport) -> None:
        facts = {
            "request": report.number,
            "state": report.state,
            "prompt_tokens": report.prompt_tokens,
            "cached_tokens": sum(report.cached_by_tier.values()),
            "ttft_s": report.ttft_s,
        }
        self._note(**facts)
        _log.debug("request %d ended: %s", report.number, report.state, extra=facts)

    def _add_cost(self, report: RequestReport, cache_report: CacheReport) -> None:
        """What its difference looks like and costs, unless that was found out of another a moment ago."""
        if not report.prefilled_tokens or not report.prefill_s:
            return
        self._num_to_describe += 1
        begun_s = time.monotonic()
        if begun_s < self._describe_again_s:
            return
        explanation = _worked_out(cache_report.explanation, report.number)
        ended_s = time.monotonic()
        self._describe_again_s = ended_s + (ended_s - begun_s) / _DESCRIBING_SHARE
        if explanation is not None and explanation.difference is not None:
            prefill_s_per_token = report.prefill_s / report.prefilled_tokens
            with self._lock:
                self._costs.add(explanation.difference, prefill_s_per_token, stands_for=self._num_to_describe)
        self._num_to_describe = 0

    # --- what is told ---------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """For Engine.stats: `ended`, `missed_tokens`, `ttft_s`, `queue_s`, `load_s`."""
        self.settle()
        with self._lock:
            return {
                "ended": dict(self._replies),
                "missed_tokens": {reason.value: num for reason, num in self._missed.items()},
                "ttft_s": {tier: histogram.figures() for tier, histogram in self._ttft.items()},
                "queue_s": self._queue.figures(),
                "load_s": self._load.figures(),
            }

    def request(self, number: int, *, text: bool) -> RequestReport:
        """One that runs, or one of the last that ended. Raises KeyError for another."""
        self.settle()
        with self._lock:
            alive, ended = self._alive.get(number), self._ended.get(number)
            if ended is not None:
                report, outline, in_full = self._as_of_now(ended), ended.outline, ended.in_full
            elif alive is not None:
                report, outline, in_full = self._report(alive), None, alive.cache_report
            else:
                raise KeyError(f"request {number} is not among those that are remembered")
        explanation = outline if in_full is None else _worked_out(in_full.explanation, number)
        if explanation is not None and not text:
            explanation = explanation.without_text()
        return replace(report, explanation=explanation)

    def requests(self, limit: int) -> tuple[RequestReport, ...]:
        """The last ones, the latest first, without explanations."""
        self.settle()
        with self._lock:
            alive = [self._report(request) for request in self._alive.values()]
            ended = [self._as_of_now(one) for one in reversed(self._ended.values())]
        return tuple(sorted([*alive, *ended], key=lambda report: -report.number)[:limit])

    def advice(self, *, text: bool) -> tuple[Advice, ...]:
        """See Costs.advice."""
        self.settle()
        with self._lock:
            return self._costs.advice(text=text)

    def erase(self, tenant: str) -> None:
        """Forget what prompts of a tenant's could be read from; of costs, where it is not known whose they are, all of that."""
        self.settle()
        with self._lock:
            for ended in self._ended.values():
                if ended.tenant == tenant:
                    ended.forget_text()
            self._costs.forget_text()

    @staticmethod
    def _as_of_now(ended: _Ended) -> RequestReport:
        return replace(ended.report, submitted_ago_s=time.monotonic() - ended.submitted_s)

    @staticmethod
    def _report(request: Request) -> RequestReport:
        """What is known of a request; of one that runs it may be a little behind."""
        marks, usage = request.marks, request.usage()
        timings = request.timings()
        state = "running" if marks.admitted_s else "waiting"
        return RequestReport(
            number=request.number,
            state=request.samples[min(request.samples)].finish_reason if request.is_over else state,
            submitted_ago_s=time.monotonic() - marks.submitted_s,
            prompt_tokens=usage.prompt_tokens,
            cached_by_tier=usage.cached_by_tier,
            prefilled_tokens=usage.prefilled_tokens,
            completion_tokens=usage.completion_tokens,
            queue_s=timings.queue_s if marks.admitted_s else None,
            load_s=timings.load_s if marks.loaded_s else None,
            prefill_s=timings.prefill_s if marks.computed_s else None,
            ttft_s=timings.ttft_s if marks.first_token_s else None,
            decision=request.decision,
            private=request.options.tenant is not None or request.options.cache_salt is not None,
            error=request.error,
        )


def _worked_out(work_out: Callable[[], Explanation], number: int) -> Explanation | None:
    """What cannot be explained is logged: a tokenizer is not ours, and what it raises must not end the accounts."""
    try:
        return work_out()
    except Exception:  # noqa: BLE001 - see above
        _log.exception("a miss cannot be explained", extra={"request": number})
        return None
