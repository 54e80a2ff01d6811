"""One reply on its way through the engine: its tokens, and what it holds."""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tiering.keeping import Told
from tiering.keeping.admission import NO_HINTS
from tiering.lease import Lease
from tiering.leases import CacheUse, Wait
from tiering.owners import Ownership
from tiering.ranks import Rank
from tiering.swaps import Stash

from .chunk import Chunk
from .request import Request
from .results import Delta, FinishReason, Sample, TokenLogprob
from .salt import Salt
from .sampling import Choice, Dice, Draw
from .text import ReplyText

_TEXT, _CHAT = 0, 1  # kinds of requests, which may be used again differently

CACHE_USES = {"readwrite": CacheUse.READ_WRITE, "read": CacheUse.READ, "off": CacheUse.OFF}


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt, one reply so far, and what they hold. Only the loop's thread changes it.

    What it holds it may lose at any time to an older request (see `tiering.admission`, whose `Request` this is). Its
    tokens stay, and their KV is found, loaded, brought back or computed again when it is next admitted::

        tokens       prompt                  reply
                     |---------------------|--------|
        context      what is prefilled after an admission; at first the prompt
        gaps         [start, end) of it that are still to be computed; None until the loads are over, or it begins early
        num_computed tokens whose KV is there once there are no gaps; what follows is fed one at a time
    """

    request: Request
    eos_ids: frozenset[int]
    block_tokens: int
    deterministic: bool
    salt: Salt
    text: ReplyText
    dice: Dice
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the reply because its caller said so."""
    index: int = 0
    reply: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_told: int = 0
    """Tokens of the reply that a stream has shown."""
    # kept by Admission
    lease: Lease | None = None
    stash: Stash | None = None
    arrival: int = 0
    overtaken: int = 0
    waits: Wait = Wait.FOR_ROOM
    # of this admission
    gaps: list[tuple[int, int]] | None = None
    num_computed: int = 0
    early_s: float | None = None
    """When the prefill began, if that was before all blocks had arrived ..."""
    lost_before: int = 0
    """... and how many had been lost by then."""
    # beyond it
    kept_tokens: int = 0
    """Tokens whose KV was there when the stash was made."""

    # --- for admission --------------------------------------------------------------------------------------------

    @property
    def prompt(self) -> NDArray[np.int32]:
        """The token ids that are given."""
        return self.request.prompt

    @property
    def priority(self) -> int:
        """The lowest goes first."""
        return self.request.options.priority

    @property
    def max_blocks(self) -> int:
        """Blocks for prompt and reply."""
        return blocks_needed(len(self.prompt), self.request.max_tokens, self.block_tokens)

    @property
    def cache_use(self) -> CacheUse:
        """What the request may do with the cache."""
        return CACHE_USES[self.request.options.cache]

    @property
    def ownership(self) -> Ownership:
        """Whose its blocks are."""
        return self.salt.ownership

    @property
    def rank(self) -> Rank:
        """How long its blocks are to be kept."""
        return Rank[self.request.options.keep_priority.upper()]

    @property
    def ttl_s(self) -> float | None:
        """For how long after each use its blocks are to live."""
        return self.request.options.ttl_s

    @property
    def tokens(self) -> NDArray[np.int32]:
        """What the cache is asked for."""
        if self.stash is not None:
            return self.salt(self._known[: self.stash.start * self.block_tokens])
        return self.salt(self.prompt if self.deterministic else self._known)

    @property
    def compute_last(self) -> bool:
        """Whether the last of `tokens` must be computed, because what comes next is not known yet."""
        if self.is_warming:
            return False
        return not self.reply or (self.stash is None and not self.deterministic)

    @property
    def is_warming(self) -> bool:
        """Whether it is over when the prompt is computed."""
        return self.request.max_tokens == 0

    @property
    def told(self) -> Told | None:
        """What its end tells of how its blocks may be used again: of several replies to a prompt the first one's does."""
        if self.index or self.cache_use is not CacheUse.READ_WRITE:
            return None
        hints = self.request.options.hints
        return Told(
            output_tokens=len(self.reply),
            kind=_TEXT if self.request.messages is None else _CHAT,
            hints=NO_HINTS if hints is None else hints.in_blocks(self.block_tokens),
        )

    def num_used_blocks(self) -> int:
        """About to be preempted: how far the slots hold what this request has computed and nobody else can find."""
        if not self.reply:
            return 0
        assert self.lease is not None, "only what is admitted is preempted"
        if self.gaps == []:
            self.kept_tokens = self.num_computed
            return self._blocks(self.kept_tokens)
        # what came back is there, but a gap before it may not have been filled yet
        num_blocks = self._blocks(self.kept_tokens)
        is_there = self._is_back and self.lease.ready[len(self.lease.ids) : num_blocks].all()
        return num_blocks if is_there else 0

    def preempted(self) -> None:
        """The device is gone; what could be saved is in the stash."""
        self.gaps = None
        if self.stash is None:
            self.kept_tokens = 0
        marks = self.request.marks
        if not marks.computed_s:  # it waits as it did before: what its prompt takes is told, and learned, of the time that computes it
            marks.admitted_s = marks.loaded_s = 0.0

    @property
    def _is_back(self) -> bool:
        """Whether what was in the stash is on the device again."""
        assert self.lease is not None, "only what is admitted has anything on the device"
        return self.kept_tokens > 0 and bool(self.lease.ready[self._blocks(self.kept_tokens) - 1])

    @property
    def _known(self) -> NDArray[np.int32]:
        """Prompt and reply."""
        return (
            np.concatenate([self.prompt, np.array(self.reply, dtype=np.int32)]) if self.reply else self.prompt
        )

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    # --- one prompt, several replies ------------------------------------------------------------------------------

    @property
    def num_prompt_blocks(self) -> int:
        """Blocks that hold the prompt: what another reply to it shares or copies."""
        return self._blocks(len(self.prompt))

    @property
    def num_forks(self) -> int:
        """Replies that will begin when the prompt is computed."""
        return 0 if self.reply or self.is_warming else self.request.params.n - 1

    def forked(self) -> None:
        """It goes on from a computed prompt: `lease` holds all of it, and the first token is known."""
        self.gaps, self.num_computed = [], len(self.prompt)

    # --- computing ------------------------------------------------------------------------------------------------

    @property
    def loading(self) -> bool:
        """Admitted, with blocks still on their way to the device."""
        return self.lease is not None and self.lease.num_loading > 0

    @property
    def arriving(self) -> bool:
        """Admitted, and of all blocks that are still on their way the first layers are there."""
        return self.lease is not None and self.lease.is_arriving

    def begin_early(self) -> None:
        """All blocks are `arriving`: find out what is left to compute if they arrive."""
        assert self.lease is not None, "only an admitted sequence can be prefilled"
        self.early_s, self.lost_before = time.monotonic(), self.lease.num_lost
        self._find_gaps()

    def forget_prefill(self) -> None:
        """It was begun early, and does not count: when the loads are over it begins anew."""
        self.gaps = self.early_s = None

    def arrived(self) -> bool:
        """Whether what was computed early counts: all that was on its way then has arrived. If not, it is forgotten."""
        assert self.lease is not None and self.early_s is not None, "nothing was begun early"
        if self.lease.num_loading or self.lease.num_lost != self.lost_before:
            self.forget_prefill()
            return False
        self._loaded(self.early_s)
        self.early_s = None
        return True

    def begin_prefill(self) -> None:
        """The last load is over: find out what is left to compute."""
        if self.gaps is None:
            self._find_gaps()
            self._loaded(time.monotonic())

    def _loaded(self, when_s: float) -> None:
        self.request.marks.loaded_s = self.request.marks.loaded_s or when_s

    def _find_gaps(self) -> None:
        assert self.lease is not None, "only an admitted sequence can be prefilled"
        if self._is_back:
            context = self.kept_tokens
        else:
            # a reply is computed again as it was the first time where bits matter, else as fast as a prompt
            context = len(self.prompt) if self.deterministic else self.num_tokens
        runs = self.lease.gaps(self._blocks(context))
        self.gaps = [
            (start * self.block_tokens, min(end * self.block_tokens, context)) for start, end in runs
        ]
        self.num_computed = context

    def next_end(self, max_tokens: int, multiple: int | None) -> int:
        """Where the next part of the context to compute ends, if it may have `max_tokens`; or at a multiple."""
        assert self.gaps, "nothing is left to prefill"
        start, end = self.gaps[0]
        return min(end, start + max_tokens if multiple is None else (start // multiple + 1) * multiple)

    def prefill_chunk(self, end: int) -> Chunk:
        """The next part of the context, up to `end`."""
        assert self.gaps and self.lease is not None, "nothing is left to prefill"
        start, _ = self.gaps[0]
        return Chunk(
            tokens=self._known[start:end],
            start=start,
            slots=self.lease.slots,
            wants_logits=end == self.num_tokens and not self.is_warming,
        )

    def decode_chunk(self) -> Chunk:
        """The first token that has no KV yet, to be fed back; the next one is wanted if that is not known."""
        assert self.lease is not None, "only an admitted sequence can decode"
        return Chunk(
            tokens=np.array([self.reply[self.num_computed - len(self.prompt)]], dtype=np.int32),
            start=self.num_computed,
            slots=self.lease.slots,
            wants_logits=self.num_computed == self.num_tokens - 1,
            decode=True,
        )

    def computed(self, chunk: Chunk) -> None:
        """That chunk has been computed."""
        if chunk.decode:
            self.num_computed = chunk.end
            return
        assert self.gaps is not None, "a chunk was computed that was not asked for"
        _, end = self.gaps[0]
        if chunk.end == end:
            self.gaps.pop(0)
        else:
            self.gaps[0] = (chunk.end, end)

    @property
    def num_tokens(self) -> int:
        """Prompt and reply so far."""
        return len(self.prompt) + len(self.reply)

    @property
    def indexable(self) -> NDArray[np.int32]:
        """The tokens whose blocks others may use once they are computed: none whose KV is not there or in a gap."""
        if self.cache_use is not CacheUse.READ_WRITE:
            return self.prompt[:0]
        return self.salt(self.prompt if self.deterministic else self._known[: self.num_computed])

    @property
    def not_indexed(self) -> tuple[NDArray[np.int32], int]:
        """Prompt and reply as the cache would be asked for them, and the first block that decoding had a part in."""
        return self.salt(self._known), len(self.prompt) // self.block_tokens

    # --- replying -------------------------------------------------------------------------------------------------

    def draw(self) -> Draw:
        """What decides over the next token."""
        params = self.request.params
        uniform = self.dice.roll() if params.temperature > 0 else 0.0
        return Draw(params, uniform, self._known if params.penalises else self.prompt[:0], len(self.reply))

    def accept(self, choice: Choice) -> FinishReason | None:
        """Take the next token of the reply. Why the reply ends with it, or None. Raises what the tokenizer raises."""
        request = self.request
        self.reply.append(choice.token)
        if choice.logprob is not None:
            self.logprobs.append(choice.logprob)
        request.marks.last_token_s = time.monotonic()
        request.marks.first_token_s = request.marks.first_token_s or request.marks.last_token_s
        if self._ends_with(choice.token):
            return "stop"
        self.text.push(choice.token)
        if self.text.stopped:
            return "stop"
        return "length" if len(self.reply) >= request.max_tokens else None

    def _ends_with(self, token: int) -> bool:
        return token in self.stop_ids or (token in self.eos_ids and not self.request.params.ignore_eos)

    def news(self, reason: FinishReason | None = None, error: str | None = None) -> Delta:
        """What a stream has not shown yet. `reason`, if this is the end."""
        tokens, self.num_told = tuple(self.reply[self.num_told :]), len(self.reply)
        text = self.text.take()
        return Delta(text=text, token_ids=tokens, index=self.index, finish_reason=reason, error=error)

    # --- the end --------------------------------------------------------------------------------------------------

    def sample(self, reason: FinishReason) -> Sample:
        """The reply as its caller sees it."""
        return Sample(
            index=self.index,
            text=self.text.text,
            token_ids=list(self.reply),
            finish_reason=reason,
            logprobs=None if self.request.params.logprobs is None else tuple(self.logprobs),
        )


def blocks_needed(prompt_tokens: int, max_tokens: int, block_tokens: int) -> int:
    """Blocks for a prompt and its reply. The last token of a reply is never fed back, so it has no KV."""
    return -(-(prompt_tokens + max(max_tokens - 1, 0)) // block_tokens)
