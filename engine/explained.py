"""What an engine tells of its prompts: why one misses, what became of the last ones, what divergences cost."""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.reports import Advice, Explanation, PrefixDetail, PrefixPage, PrefixQuery, RequestReport
from tiering.observation import Observed

from .accounts import Accounts
from .chat import Prompt, detokenise, encode, messages_of, notes_on
from .config import EngineConfig
from .explainer import Case, Explainer
from .messages import Message, Observe
from .model import Model
from .params import RequestOptions
from .salt import Salt, unmarked
from .sequence import CACHE_USES
from .steering import Steered


class Explained(Steered):
    """The part of an engine that its explainer and its accounts do."""

    model: Model
    config: EngineConfig
    _explainer: Explainer
    _accounts: Accounts

    def _post(self, message: Message) -> None:
        raise NotImplementedError

    def explain(
        self, prompt: Prompt, options: RequestOptions | None = None, *, text: bool = True
    ) -> Explanation:
        """Why a prompt would not be served from the cache further than it would be now. Changes nothing.

        Of `options` tenant, salt and cache use count. With `text` a difference shows some of the prompt and of what is
        cached, whoever asked that; without, neither text nor token ids. Raises ValueError as `generate` does.
        """
        options = options or RequestOptions()
        tokens = encode(prompt, self.model.tokenizer, self.model.vocab_size)
        salt = Salt(options, len(tokens), self.config.block_tokens)
        future: Future[Observed] = Future()
        self._post(Observe(salt(tokens), CACHE_USES[options.cache], future))
        notes = notes_on(prompt, self.model.tokenizer)
        explanation = self._explainer.explain(Case(future.result(), messages_of(prompt), notes))
        return explanation if text else explanation.without_text()

    def prefixes(self, query: PrefixQuery | None = None) -> PrefixPage:
        """List runs of blocks without a branch, those that prompts begin with or those under one. See PrefixQuery.

        As of a second ago at most, where there are not very many. Raises ValueError for what no query can be, and KeyError if
        there is no run `under` which to look.
        """
        self._check_open()
        return self._cache.prefixes(query or PrefixQuery(), self._text_of)

    def prefix(self, key: str, *, text: bool = False) -> PrefixDetail:
        """The run that ends with, or holds, the block of this key, in hexadecimal. Raises KeyError if none does.

        `text`: with its text and its token ids.
        """
        self._check_open()
        return self._cache.prefix(key, text=text, describe=self._text_of, unmark=unmarked)

    def _text_of(self, tokens: NDArray[np.int32]) -> str:
        return detokenise(unmarked(tokens), self.model.tokenizer)

    def options(self, values: Mapping[str, Any]) -> RequestOptions:
        """RequestOptions from plain values. Raises ValueError for what it does not know."""
        try:
            return RequestOptions(**values)
        except TypeError as error:
            raise ValueError(str(error).partition(" ")[2]) from error

    def request(self, number: int, *, text: bool = True) -> RequestReport:
        """What is known of a request, by the id of its handle: of those that run, and the last thousand that ended.

        Raises KeyError for another. `text`: as for `explain`.
        """
        return self._accounts.request(number, text=text)

    def requests(self, limit: int = 50) -> tuple[RequestReport, ...]:
        """The last requests, the latest first, without explanations."""
        return self._accounts.requests(limit)

    def advice(self, *, text: bool = False) -> tuple[Advice, ...]:
        """Where prompts have left what is cached at the highest cost, the costliest first, and what to do about it."""
        return self._accounts.advice(text=text)
