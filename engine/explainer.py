"""Explanations of an engine's own prompts: the core's observation, put into words with the model's tokenizer."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from kvstore.block import Namespace
from kvstore.errors import StoreError
from kvstore.facts import differing_facts
from kvstore.reasons import MissReason
from kvstore.reports import Decision, Difference, Explanation
from kvstore.steering import KnowsOthers
from kvstore.store import Store
from tiering.diagnosis.differences import difference
from tiering.explain import Describe, Divergence, Others, explain
from tiering.lease import Lease
from tiering.observation import Observed

from .salt import MARK_SHIFT

if TYPE_CHECKING:
    from .request import Request


_OUTLINE_TOKENS: Final = 32


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt to be explained. `messages`: the prompt, if it was a chat; `found_in`, `lost`: see tiering.explain.

    `decision`: of a request whose prompt is computed.
    """

    observed: Observed
    messages: tuple[Mapping[str, Any], ...] | None
    notes: tuple[str, ...]
    found_in: NDArray[np.int8] | None = None
    lost: Mapping[int, MissReason] | None = None
    decision: Decision | None = None


class Explainer:
    """Says why prompts were not served further. Any thread may call it; it computes nothing on the engine's."""

    def __init__(self, tokenizer: Any, namespace: Namespace, store: Store | None) -> None:
        """`tokenizer`: None where the model has none; then differences are told as token ids. `namespace`: the model's own;
        `store`: where other models may have the same prompts.
        """
        self._tokenizer, self._namespace, self._store = tokenizer, namespace, store

    def explain(self, case: "Case") -> Explanation:
        """In full: with what a difference looks like, which may take a tenth of a second of Python for a long chat."""

        def describe(divergence: Divergence) -> Difference:
            return difference(
                divergence.asked,
                divergence.cached,
                divergence.at_token,
                cached_from=divergence.at_token,
                tokenizer=self._tokenizer,
                messages=case.messages,
            )

        return self._explained(case, describe)

    def outline(self, case: "Case") -> Explanation:
        """The same, but of a difference no more than where it is and the next tokens: a few milliseconds."""
        return self._explained(case, _outlined)

    def _explained(self, case: "Case", describe: Describe) -> Explanation:
        observed = case.observed
        explanation = explain(
            observed,
            describe,
            found_in=case.found_in,
            lost=case.lost,
            mark_shift=MARK_SHIFT,
            elsewhere=lambda: self._elsewhere(observed),
        )
        return replace(explanation, notes=case.notes, decision=case.decision)

    def _elsewhere(self, observed: Observed) -> Others | None:
        """Who else has a prompt of which this model has nothing."""
        if not isinstance(self._store, KnowsOthers):
            return None
        tokens, size = observed.tokens, observed.block_tokens
        blocks = [tokens[at * size : (at + 1) * size].tobytes() for at in range(observed.usable_blocks)]
        try:
            others = self._store.others_with(blocks)
        except StoreError:
            return None
        if not others:
            return None
        most = others[0]
        differs = "; ".join(differing_facts(most.facts, dict(self._namespace.fields))) if most.facts else ""
        tokens_there = most.blocks * size
        sentence = f"{tokens_there} tokens are on disk for another identity ({differs or most.digest[:12]})"
        return Others(most.blocks, sentence)

    def report(self, request: "Request", lease: Lease) -> "CacheReport | None":
        """Of a request whose prompt has been computed with this lease, which may change or end after this. Once for each."""
        if (observed := lease.take_observed()) is None:
            return None
        found_in = lease.found_in[: len(observed.tiers)].copy()
        case = Case(
            observed, request.messages, request.cache_notes, found_in, dict(lease.lost), lease.decision
        )
        return CacheReport(self, case)


class CacheReport:
    """The explanation of one request, worked out when it is first asked for, on the thread that asks."""

    def __init__(self, explainer: Explainer, case: Case) -> None:
        self._explainer = explainer
        self._case: Case | None = case
        self._explanation: Explanation | None = None
        self._lock = threading.Lock()

    def explanation(self) -> Explanation:
        """See Explainer.explain. Always the same; what it was made from is let go of."""
        with self._lock:
            if self._explanation is None:
                assert self._case is not None, "it is let go of only when the explanation is there"
                self._explanation = self._explainer.explain(self._case)
                self._case = None
            return self._explanation

    def outline(self) -> Explanation:
        """See Explainer.outline; or the explanation, if that is there."""
        case = self._case
        return self.explanation() if case is None else self._explainer.outline(case)


def _outlined(divergence: Divergence) -> Difference:
    at, some = divergence.at_token, slice(0, _OUTLINE_TOKENS)
    return Difference(
        at_token=at,
        before_ids=tuple(divergence.asked[max(0, at - _OUTLINE_TOKENS) : at].tolist()),
        asked_ids=tuple(divergence.asked[at:][some].tolist()),
        cached_ids=tuple(divergence.cached[some].tolist()),
    )
