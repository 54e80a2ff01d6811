"""The text of a reply while it comes: whole characters only, and nothing that a stop text may still take back."""

from collections.abc import Sequence
from typing import Any

from .chat import detokenise

_UNFINISHED = "\ufffd"  # what a tokenizer shows of a character whose bytes are not all there


class ReplyText:
    """Turns tokens into text as they come. `text` is all that is certain so far, `take` what of it is new.

    A token may be part of a character, and how a tokenizer writes a word may depend on the one before it. So a window
    is decoded twice, with and without its new tokens, and the difference is the new text: the method of Hugging Face's
    text-generation-inference.

        tokens     . . . . . | given out, as context | new |
                             ^ start                 ^ end
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        """`tokenizer`: None gives no text. `stops`: texts that end the reply."""
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._textless = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self._ids: list[int] = []
        self._start = self._end = 0
        self._held = ""
        """Decoded, but perhaps the beginning of a stop text."""
        self.text = ""
        self._num_taken = 0
        self.stopped = False
        """Whether a stop text was met: `text` ends before it."""

    def push(self, token: int) -> None:
        """The next token. Raises what the tokenizer raises."""
        if self._tokenizer is None or self.stopped or token in self._textless:
            return
        self._ids.append(token)
        news = self._news()
        if news and not news.endswith(_UNFINISHED):
            self._start, self._end = self._end, len(self._ids)
            self._give(news)

    def finish(self) -> None:
        """The reply is over: what was held back is certain, a character that remained unfinished included."""
        if self._tokenizer is None or self.stopped:
            return
        self._give(self._news())
        self._end = len(self._ids)
        if not self.stopped:
            self.text += self._held
            self._held = ""

    def take(self) -> str:
        """The certain text that was not taken yet."""
        news, self._num_taken = self.text[self._num_taken :], len(self.text)
        return news

    def _news(self) -> str:
        """What the tokens at the end add to those before them."""
        context = self._ids[self._start : self._end]
        before = detokenise(context, self._tokenizer) if context else ""
        return detokenise(self._ids[self._start :], self._tokenizer)[len(before) :]

    def _give(self, news: str) -> None:
        text = self._held + news
        found = [at for at in map(text.find, self._stops) if at >= 0]
        self.stopped = bool(found)
        certain = min(found) if found else len(text) - self._num_open(text)
        self._held = "" if found else text[certain:]
        self.text += text[:certain]

    def _num_open(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = max(map(len, self._stops), default=1)
        for num in range(min(len(text), longest - 1), 0, -1):
            if any(stop.startswith(text[-num:]) for stop in self._stops):
                return num
        return 0


def special_ids(stops: Sequence[str], tokenizer: Any) -> frozenset[int]:
    """Those stop texts that are special tokens, such as "<|im_end|>": as these have no text, their ids must do."""
    names, ids = (getattr(tokenizer, f"all_special_{what}", ()) for what in ("tokens", "ids"))
    written = dict(zip(names, ids, strict=True))
    return frozenset(written[stop] for stop in stops if stop in written)
