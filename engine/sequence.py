"""One reply on its way through the engine: its tokens, and what it holds."""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tiering.claim import Claim
from tiering.context import Context
from tiering.keeping import Told
from tiering.keeping.admission import KINDS, NO_HINTS
from tiering.leases import Wait
from tiering.matching import CacheUse
from tiering.ranks import Rank

from .chunk import Chunk
from .request import Request
from .results import Delta, FinishReason, Sample, TokenLogprob
from .salt import Salt
from .sampling import Choice, Dice, Draw
from .text import ReplyText

CACHE_USES = {"readwrite": CacheUse.READ_WRITE, "read": CacheUse.READ, "off": CacheUse.OFF}


@dataclass(slots=True, eq=False)
class Sequence(Context):
    """A prompt, one reply so far, and what they hold. Only the loop's thread changes it.

    What it holds it may lose at any time to an older request (see `tiering.admission`, whose `Request` this is). Its
    tokens stay, and their KV is found, loaded, brought back or computed again when it is next admitted. `gaps` are known when the
    loads are over, or it begins early.
    """

    request: Request
    eos_ids: frozenset[int]
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
    arrival: int = 0
    overtaken: int = 0
    waits: Wait = Wait.FOR_ROOM
    # of this admission
    early_s: float | None = None
    """When the prefill began, if that was before all blocks had arrived ..."""
    lost_before: int = 0
    """... and how many had been lost by then."""

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
    def claim(self) -> Claim:
        """Whose its blocks are, and how long they are to be kept."""
        options = self.request.options
        return Claim(self.salt.ownership, Rank[options.keep_priority.upper()], options.ttl_s)

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
            kind=KINDS["prompt" if self.request.messages is None else "chat"],
            hints=NO_HINTS if hints is None else hints.in_blocks(self.block_tokens),
        )

    @property
    def has_replied(self) -> bool:
        """See Context."""
        return bool(self.reply)

    def preempted(self) -> None:
        """See Context. It waits as it did before: what its prompt takes is told, and learned, of the time that computes it."""
        Context.preempted(self)  # super() does not know a class with slots
        marks = self.request.marks
        if not marks.computed_s:
            marks.admitted_s = marks.loaded_s = 0.0

    @property
    def _known(self) -> NDArray[np.int32]:
        """Prompt and reply."""
        return (
            np.concatenate([self.prompt, np.array(self.reply, dtype=np.int32)]) if self.reply else self.prompt
        )

    # --- one prompt, several replies ------------------------------------------------------------------------------

    @property
    def num_prompt_blocks(self) -> int:
        """Blocks that hold the prompt: what another reply to it shares or copies."""
        return self.num_blocks(len(self.prompt))

    @property
    def num_forks(self) -> int:
        """Replies that will begin when the prompt is computed."""
        return 0 if self.reply or self.is_warming else self.request.params.n - 1

    def forked(self) -> None:
        """It goes on from a computed prompt: `lease` holds all of it, and the first token is known."""
        self.gaps, self.num_computed = [], len(self.prompt)

    # --- computing ------------------------------------------------------------------------------------------------

    @property
    def arriving(self) -> bool:
        """Admitted, and of all blocks that are still on their way the first layers are there."""
        return self.lease is not None and self.lease.is_arriving

    def begin_early(self) -> None:
        """All blocks are `arriving`: find out what is left to compute if they arrive."""
        assert self.lease is not None, "only an admitted sequence can be prefilled"
        self.early_s, self.lost_before = time.monotonic(), self.lease.num_lost
        self._begin()

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
            self._begin()
            self._loaded(time.monotonic())

    def _loaded(self, when_s: float) -> None:
        self.request.marks.loaded_s = self.request.marks.loaded_s or when_s

    def _begin(self) -> None:
        # a reply is computed again as it was the first time where bits matter, else as fast as a prompt
        self.find_gaps(len(self.prompt) if self.deterministic else self.num_tokens)

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
        self.advance(chunk.end, decode=chunk.decode)

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
