"""The engine's thread: the only one that calls the cache, the scheduler and the model."""

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from tiering.cache import TieredCache
from tiering.lease import Lease
from tiering.matching import CacheUse
from tiering.residency import Tier
from tiering.writes import Sweep

from .answers import Answers, told
from .chunk import Chunk, StepSlots
from .errors import EngineClosed
from .explainer import Explainer
from .figures import Figures
from .flashinfer import FlashInfer
from .messages import Cancel, Check, Clear, Demote, Erase, Lookup, Message, Observe, Stop, Submit, Wake
from .model import Model
from .out_of_memory import memory_for
from .pool import DevicePool
from .request import Request
from .results import FinishReason
from .sampling import Choice, choose_from
from .scheduler import Scheduler
from .sequence import Sequence

_Computed = TypeVar("_Computed")

_log = logging.getLogger(__name__)

_LONGEST_SLEEP_S = 3600.0  # no deadline is slept towards for longer: the system's own timers have limits
_CLEAR_S = 30.0  # how long clear() and erase() may wait for copies in flight


class EngineLoop:
    """Takes messages, admits, computes step after step; sleeps on its inbox when there is nothing to compute.

    Any thread may ask for `figures`, and send messages to `inbox`; everything else runs on the loop's own.
    """

    def __init__(
        self,
        inbox: "queue.SimpleQueue[Message]",
        *,
        cache: TieredCache,
        scheduler: Scheduler,
        model: Model,
        pool: DevicePool,
        deterministic: bool,
        memory_advice: str,
        ended: Callable[[Request], None],
        explainer: Explainer,
        group_starts: tuple[int, ...] = (0,),
        kernels: FlashInfer | None = None,
    ) -> None:
        """Takes over `cache`: from here on only the loop's thread calls it. `cache` wakes the loop through `inbox`.

        `ended` is told of each request that is over, and must only post; `explainer` puts misses into words, on others'
        threads. `memory_advice`: what may be lowered where a step runs out of memory, for those whose requests it ends.
        `group_starts`: the first layer of each of the cache's layer groups.
        """
        self._inbox = inbox
        self._cache, self._scheduler = cache, scheduler
        self._model, self._pool = model, pool
        self._deterministic = deterministic
        self._memory_advice = memory_advice
        self._kernels = kernels
        self._block_tokens = pool.layout.block_tokens
        self._groups = {layer: group for group, layer in enumerate(group_starts)}
        self._sweeps: deque[Demote] = deque()
        """One at a time: the first is under way."""
        self._sweep: Sweep | None = None
        self._stopping = False
        self._has_news = False
        """Whether the last step computed parts of prompts, or met news of the cache: a request may have waited for it."""
        self._answers = Answers(ended)
        self._explainer = explainer
        self._counts = {
            "requests": 0,
            "steps": 0,
            "prompt_tokens": 0,
            "prefilled_tokens": 0,
            "cached_tokens": 0,
            "generated_tokens": 0,
            "forked_replies": 0,
            "early_prefills": 0,
            "void_prefills": 0,
        }
        self._cached_tokens = dict.fromkeys((tier.label for tier in Tier), 0)
        self.figures = Figures(self._counted, cache.stats)
        """Any thread may ask; it costs the loop nothing."""
        self._at_hand: Message | None = None
        """The message that is being looked at."""
        self.failure: str | None = None
        """Why the engine cannot go on; None while it can."""
        self._thread = threading.Thread(target=self._run, name="kvtide-engine", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the loop has ended."""
        self._thread.join()

    # --- the loop's own thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._pool.device.type == "cuda":
                torch.cuda.set_device(self._pool.device)  # a thread begins with the first one
            idle = True
            while not self._stopping:
                idle = not self._turn(block=idle)
            for sequence in self._scheduler.all():
                self._end(sequence, "cancelled")
            self._answers.deliver()
        except Exception as error:  # noqa: BLE001 - the thread's top: reaches every caller that waits, or will
            _log.exception("the engine has failed")
            self._refuse(told(error))
        for asked in self._sweeps:
            asked.future.set_exception(EngineClosed())
        self.figures.end()

    def _turn(self, *, block: bool) -> bool:
        """Everything once: messages, news of the cache, admission, one step. Whether something was computed.

        With `block` it sleeps until there is a message, or something in the cache has taken too long.
        """
        self._take_messages(block=block)
        for sequence in self._scheduler.late(time.monotonic()):
            self._end(sequence, "timeout")
        news = self._cache.pump()
        self._scheduler.admit(news=news or self._has_news)
        step = self._scheduler.next_step()
        self._has_news = any(not chunk.decode for _, chunk in step)
        if step:
            self._compute(step)
        warmed = self._scheduler.warmed()
        for sequence in warmed:
            self._note_cached(sequence)
            self._end(sequence, "length")
        self._go_on_sweeping()
        self._answers.deliver()
        self.figures.changed()
        return bool(step or warmed)  # what has ended leaves room: look at who waits

    def _take_messages(self, *, block: bool) -> None:
        deadlines = [self._cache.deadline_s, self._scheduler.deadline_s] if block else []
        waits_s = [max(0.0, deadline - time.monotonic()) for deadline in deadlines if deadline is not None]
        timeout_s = min([*waits_s, _LONGEST_SLEEP_S]) if waits_s else None
        with contextlib.suppress(queue.Empty):
            while not self._stopping:
                self._at_hand = self._inbox.get(block=block, timeout=timeout_s)
                block = False
                self._take(self._at_hand)
                self._at_hand = None

    def _refuse(self, error: str) -> None:
        """The books cannot be trusted any more: tell everybody who waits or still comes, until the engine is closed."""
        self.failure = error
        self._answers.asks_tokenizer = False
        for sequence in self._scheduler.all():
            self._answers.end(sequence, "error", error)
        self._answers.deliver()
        failed = RuntimeError(f"the engine has failed: {error}")
        self._cache.refuse(str(failed))
        for asked in self._sweeps:
            asked.future.set_exception(failed)
        self._sweeps.clear()
        message = self._at_hand
        while not self._stopping:
            match message:
                case Submit(requests):
                    for request in requests:
                        self._answers.end(request.sequences[0], "error", error)
                    self._answers.deliver()
                case (
                    Lookup(_, future)
                    | Observe(_, _, future)
                    | Demote(_, _, future)
                    | Clear(future)
                    | Erase(_, future)
                    | Check(future)
                ):
                    if not future.done():
                        future.set_exception(failed)
                case Stop():
                    self._stopping = True
                    return
            message = self._inbox.get()

    def _take(self, message: Message) -> None:
        match message:
            case Submit(requests):
                self._counts["requests"] += len(requests)
                for request in requests:
                    self._scheduler.add(request.sequences[0])
            case Cancel(request):
                for sequence in self._scheduler.all():
                    if sequence.request is request:
                        self._end(sequence, "cancelled")
            case Lookup(tokens, future):
                future.set_result(self._cache.lookup(tokens))
            case Observe(tokens, use, future):
                future.set_result(self._cache.observe(tokens, use))
            case Demote():
                self._sweeps.append(message)
                self._go_on_sweeping()
            case Clear(future):
                future.set_result(self._cache.clear(_CLEAR_S))
            case Erase(owner, future):
                in_use = any(sequence.salt.ownership.owner == owner for sequence in self._scheduler.all())
                self._cache.erase(owner, _CLEAR_S, future, in_use=in_use)
            case Check(future):
                try:
                    self._cache.check()
                except AssertionError as error:
                    future.set_exception(error)
                else:
                    future.set_result(None)
            case Wake():
                pass
            case Stop():
                self._stopping = True

    def _compute(self, step: list[tuple[Sequence, Chunk]]) -> None:
        """One forward over the chunks, and what follows from it. Where that fails, their requests end with the error."""
        chunks = [chunk for _, chunk in step]
        wanting = [sequence for sequence, chunk in step if chunk.wants_logits]
        # replies to one prompt begin with the same logits
        replies = [
            (row, reply)
            for row, sequence in enumerate(wanting)
            for reply in ([sequence] if sequence.reply else sequence.request.sequences)
        ]
        logits = self._or_end(step, lambda: self._forward(chunks))
        if logits is None or not self._counts_after_all(step):
            return
        choices = self._or_end(step, lambda: self._choices(logits, replies))
        if choices is None:
            return
        self._counts["steps"] += 1
        for sequence, chunk in step:
            self._computed(sequence, chunk)
        # the one that computed the prompt last: the others take over what it holds
        for (row, reply), choice in reversed(list(zip(replies, choices, strict=True))):
            self._accept(reply, choice, parent=wanting[row])

    def _or_end(
        self, step: list[tuple[Sequence, Chunk]], compute: Callable[[], _Computed]
    ) -> _Computed | None:
        """What the model computes. None where it fails: the step's requests have ended with the error."""
        try:
            with memory_for("a step", self._memory_advice):
                return compute()
        except Exception as error:  # noqa: BLE001 - the model's errors have no common type; its requests report them
            _log.exception("a step failed")
            for sequence, _ in step:
                self._end(sequence, "error", told(error))
            return None

    def _counts_after_all(self, step: list[tuple[Sequence, Chunk]]) -> bool:
        """Whether the step had all that it reads, or if it began early has it by now."""
        sequence, chunk = step[0]
        if not sequence.loading:
            return True
        # the step itself waits for the same copies
        self._cache.finish(StepSlots([chunk], self._block_tokens))
        counts = sequence.arrived()
        self._counts["early_prefills" if counts else "void_prefills"] += 1
        return counts

    def _forward(self, chunks: list[Chunk]) -> torch.Tensor:
        batch = self._model.batch(
            chunks, self._pool, deterministic=self._deterministic, kernels=self._kernels
        )
        read = StepSlots(chunks, self._block_tokens)
        written = StepSlots(chunks, self._block_tokens, written=True)

        def before_layer(layer: int) -> None:
            if group := self._groups.get(layer):
                self._cache.before_compute(read, written, group)

        self._cache.before_compute(read, written)
        try:
            waits = before_layer if len(self._groups) > 1 else None
            return self._model.forward(batch, self._pool, waits)
        finally:  # also where it breaks off: layers that were enqueued before that still write to their slots
            self._cache.after_compute()

    @staticmethod
    def _choices(logits: torch.Tensor, replies: list[tuple[int, Sequence]]) -> list[Choice]:
        """The next token of each reply, from its row of the logits."""
        return choose_from(logits, [row for row, _ in replies], [reply.draw() for _, reply in replies])

    def _computed(self, sequence: Sequence, chunk: Chunk) -> None:
        """Whole blocks that a chunk has completed become usable for all."""
        lease = sequence.lease
        assert lease is not None, "what is computed has a lease"
        sequence.computed(chunk)
        if not chunk.decode:
            self._counts["prefilled_tokens"] += len(chunk.tokens)
        first, end = chunk.start // self._block_tokens, chunk.end // self._block_tokens
        # decode computes other last bits than prefill: in the deterministic mode it is not cached
        if end > first and not (chunk.decode and self._deterministic):
            self._cache.publish(lease, sequence.indexable, first, end)

    def _accept(self, reply: Sequence, choice: Choice, parent: Sequence) -> None:
        """A reply's next token. `parent`: whose lease it was computed with, the reply's own if it has begun."""
        self._note_cached(parent)
        self._counts["generated_tokens"] += 1
        reason, error = self._take_token(reply, choice)
        if reason is None:
            if reply is not parent:
                self._fork(parent, reply)
            self._answers.progress(reply)
        elif reply is parent:
            self._end(reply, reason, error)
        else:
            self._answers.end(reply, reason, error)

    def _note_cached(self, sequence: Sequence) -> None:
        """The prompt is computed: what the cache had of it is known for good."""
        request = sequence.request
        if request.cached_blocks is None:
            assert sequence.lease is not None, "what is computed has a lease"
            request.cached_blocks = sequence.lease.cached_blocks_by_tier()
            request.marks.computed_s = time.monotonic()
            self._learn(request, sequence.lease)
            request.cache_report = self._explainer.report(request, sequence.lease)
            self._counts["prompt_tokens"] += len(request.prompt)
            for tier, num_blocks in request.cached_blocks.items():
                self._cached_tokens[tier] += num_blocks * self._block_tokens
                self._counts["cached_tokens"] += num_blocks * self._block_tokens

    def _learn(self, request: Request, lease: Lease) -> None:
        """What loading and computing took is held against what was expected, and expected from now on."""
        marks = request.marks
        load_s = max(0.0, marks.loaded_s - marks.admitted_s)
        prefill_s = max(0.0, marks.computed_s - marks.loaded_s)
        self._cache.computed(lease, len(request.prompt), load_s=load_s, prefill_s=prefill_s)
        request.decision = lease.decision

    @staticmethod
    def _take_token(reply: Sequence, choice: Choice) -> tuple[FinishReason | None, str | None]:
        """Why the reply ends with this token, if it does, and the error if that is why."""
        if not choice.is_sound:
            return "error", "the model's logits are not numbers: its weights or its inputs are damaged"
        try:
            return reply.accept(choice), None
        except Exception as failure:  # noqa: BLE001 - a tokenizer is not ours; its request reports what it raises
            _log.exception("a reply cannot be turned into text")
            return "error", told(failure)

    def _fork(self, parent: Sequence, child: Sequence) -> None:
        """Let another reply go on from a prompt that `parent` has computed: its last block, if shared, is copied."""
        self._has_news |= self._cache.pump(errands=False)  # what has left for it meanwhile
        if not self._scheduler.fork(parent, child):
            return
        self._counts["forked_replies"] += 1
        assert parent.lease is not None and child.lease is not None, "both run"
        own = slice(len(child.lease.ids), child.num_prompt_blocks)
        source, destination = parent.lease.slots[own].tolist(), child.lease.slots[own].tolist()
        if source:
            self._cache.before_compute(source, destination)
            try:
                self._pool.copy(source, destination)
            finally:
                self._cache.after_compute()

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """What is scheduled ends: it gives back what it holds."""
        if self._deterministic and sequence.reply and sequence.cache_use is CacheUse.READ_WRITE:
            self._cache.not_indexed(*sequence.not_indexed)
        try:
            self._scheduler.remove(sequence)
        finally:  # the books may be wrong, but nobody is left waiting
            self._answers.end(sequence, reason, error)

    def _go_on_sweeping(self) -> None:
        """Answer the sweeps that are over, and begin the next: it may be over at once, and nothing would wake the loop."""
        while self._sweeps:
            asked = self._sweeps[0]
            if self._sweep is None:
                self._sweep = self._cache.sweep(asked.to, then_free=asked.then_free)
            if not self._sweep.done:
                break
            self._sweeps.popleft().future.set_result(self._sweep.num_left)
            self._sweep = None

    def _counted(self) -> dict[str, Any]:
        """What the loop counts, as it is now. Called by any thread."""
        requests = {"running": self._scheduler.num_running, "waiting": self._scheduler.num_waiting}
        return {**self._counts, "cached_tokens_by_tier": dict(self._cached_tokens), **requests}
