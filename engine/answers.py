"""What callers are told of their requests, and when."""

import logging
import traceback
from collections.abc import Callable

from .request import Request
from .results import Delta, FinishReason
from .sequence import Sequence

_log = logging.getLogger(__name__)


class Answers:
    """Collects what is new and tells it when asked to, so that the engine's figures can say so first.

    Only the loop's thread calls this. Futures and sinks belong to callers on other threads.
    """

    def __init__(self, ended: Callable[[Request], None]) -> None:
        """`ended` is told of each request that is over, before its caller is. It must only post."""
        self._ended = ended
        self._deltas: list[tuple[Request, Delta]] = []
        self._over: list[Request] = []
        self.asks_tokenizer = True
        """Whether texts are finished. False once the engine has failed: then nothing may run that could raise."""

    def progress(self, reply: Sequence) -> None:
        """A reply has got its next token and goes on."""
        if reply.request.sink is not None:
            self._deltas.append((reply.request, reply.news()))

    def end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """A reply has ended; with a prompt that was never computed all replies to it have."""
        request = sequence.request
        has_begun = bool(sequence.reply) or sequence is not request.sequences[0]
        for reply in [sequence] if has_begun else request.sequences:
            if reply.index not in request.samples:
                self._end(reply, reason, error)
        if request.is_over:
            self._over.append(request)

    def _end(self, reply: Sequence, reason: FinishReason, error: str | None) -> None:
        request = reply.request
        if self.asks_tokenizer and reason != "error":
            try:
                reply.text.finish()
                reason = "stop" if reply.text.stopped else reason
            except Exception as failure:  # noqa: BLE001 - a tokenizer is not ours; its request reports what it raises
                _log.exception("a reply cannot be turned into text")
                reason, error = "error", told(failure)
        request.samples[reply.index] = reply.sample(reason)
        request.error = request.error or error
        if request.sink is not None:
            self._deltas.append((request, reply.news(reason, error)))

    def deliver(self) -> None:
        """Tell all of it."""
        deltas, self._deltas = self._deltas, []
        for request, delta in deltas:
            try:
                if request.sink is not None:
                    request.sink(delta)
            except Exception:  # noqa: BLE001 - a caller's code: it harms nobody else, and is not called again
                _log.exception("what was to be told of a reply has failed")
                request.sink = None
        over, self._over = self._over, []
        for request in over:
            self._ended(request)
            if not request.future.done():
                request.future.set_result(request.result())


def told(error: Exception) -> str:
    """An error as one who waits is told of it: its type and its sentence."""
    return "".join(traceback.format_exception_only(error)).strip()
