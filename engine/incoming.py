"""Requests as they are made of prompts, with all that can be known to be wrong before anything is computed."""

import itertools
import time
from collections.abc import Callable

from .chat import Prompt, breakpoints_of, encode, messages_of, notes_on
from .model import Model
from .params import RequestOptions, SamplingParams
from .request import Marks, Request
from .results import Delta
from .salt import Salt
from .sampling import Dice
from .sequence import Sequence, blocks_needed
from .text import ReplyText, special_ids


class Incoming:
    """Numbers them in the order in which they come. Any thread may call it."""

    def __init__(self, model: Model, *, block_tokens: int, num_slots: int, deterministic: bool) -> None:
        """`num_slots`: blocks that the device has room for: what needs more is refused."""
        self._model, self._block_tokens = model, block_tokens
        self._num_slots, self._deterministic = num_slots, deterministic
        self._numbers = itertools.count(1)

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        options: RequestOptions,
        on_delta: Callable[[Delta], None] | None,
    ) -> Request:
        """See Engine.submit. Raises ValueError for a prompt that is empty, holds unknown token ids, or can never fit."""
        model, block_tokens = self._model, self._block_tokens
        if params.max_tokens == 0 and options.cache != "readwrite":
            raise ValueError(f"warming a prompt writes to the cache, which cache={options.cache!r} rules out")
        if params.stops and model.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer, so its replies have no text that could hold a stop text"
            )
        tokens = encode(prompt, model.tokenizer, model.vocab_size)
        room = model.max_len - len(tokens)
        if room < min(params.max_tokens, 1):
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; prompt and reply may have {model.max_len}"
            )
        if params.max_tokens == 0:
            tokens = tokens[: len(tokens) // block_tokens * block_tokens]
        request = Request(
            number=next(self._numbers),
            prompt=tokens,
            params=params,
            options=options.with_breakpoints(breakpoints_of(prompt, tokens, model.tokenizer)),
            max_tokens=min(params.max_tokens, room),
            marks=Marks(submitted_s=time.monotonic()),
            sink=on_delta,
            cache_notes=notes_on(prompt, model.tokenizer),
            messages=messages_of(prompt),
        )
        num_blocks = blocks_needed(len(tokens), request.max_tokens, block_tokens)
        if num_blocks > self._num_slots:
            raise ValueError(
                f"prompt and reply need {num_blocks} blocks of {block_tokens} tokens, the device pool has "
                f"{self._num_slots}; raise device_bytes or lower max_tokens"
            )
        salt = Salt(options, len(tokens), block_tokens)
        request.sequences = [self._sequence(request, salt, index) for index in range(params.n)]
        return request

    def _sequence(self, request: Request, salt: Salt, index: int) -> Sequence:
        params = request.params
        return Sequence(
            request=request,
            eos_ids=self._model.eos_ids,
            stop_ids=frozenset(params.stop_token_ids) | special_ids(params.stops, self._model.tokenizer),
            block_tokens=self._block_tokens,
            deterministic=self._deterministic,
            salt=salt,
            text=ReplyText(self._model.tokenizer, params.stops),
            dice=Dice(params.seed, index),
            index=index,
        )
