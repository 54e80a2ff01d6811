"""What every system is asked, in the process that it has for itself. Needs nothing but Python: peers import it."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a process is told when it starts.

    model: the directory of the converted model.   gguf: the file that it was converted from.   scratch: a directory that
    only this process uses, but for `restart`.   dtype: of the weights and the computing, where the system offers a
    choice.   connector: of vLLM, else None.   max_tokens: of the longest prompt and its reply.
    """

    model: str
    gguf: str
    scratch: str
    threads: int
    max_tokens: int
    dtype: str = "float32"
    connector: str | None = None


class Answer(NamedTuple):
    """The first token of a reply: when it came, and what it was. cached_tokens: of the prompt, as the system says."""

    ttft_s: float
    token_id: int
    cached_tokens: int


class System(Protocol):
    """A running engine. What it raises ends its process and is a row's reason."""

    facts: dict[str, Any]
    """Versions and settings, for the report."""

    def prepare(self, row: str, prefix: list[int], other: list[int]) -> dict[str, Any]:
        """Bring the prefix, and nothing of what follows it, to where the row has it. Not timed.

        `other` is a suffix that is never timed, for systems that keep only whole prompts. Returns what is to be said of
        the place, such as its bytes.
        """
        ...

    def first_token(self, prompt: list[int]) -> Answer:
        """Time a prompt, from the call to its first token."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """The text's tokens by the system's own tokenizer."""
        ...

    def close(self) -> None:
        """End in order."""
        ...
