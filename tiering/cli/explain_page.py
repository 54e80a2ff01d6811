"""How an explanation looks on a terminal, and in a file."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from tiering.diagnosis.alignment import same_characters

_SHOWN_BEFORE = 60
_NAMES = {"\n": "↵", "\t": "⇥", "\r": "␍"}
_COLOURS = ("green", "red")  # of what is cached and of what is asked
_WORD = re.compile(r"[\w:.,/+-]")


class Page:
    """Prints parts of an explanation. Control characters of prompts are made visible: none reaches the terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._marks = ("", "") if console.color_system else ("⟦", "⟧")

    def explanation(self, answer: Mapping[str, Any], name: str) -> None:
        """What the endpoint says of a prompt: its parts, and where it leaves what is cached."""
        total, cached = answer["prompt_tokens"], answer["cached_tokens"]
        share = 100 * cached / total if total else 0.0
        self._console.print(Text(f"{name}: {cached:,} of {total:,} tokens are served ({share:.1f} %)."))
        for part in answer["parts"]:
            span = f"  tokens {part['start_token']:,} to {part['end_token']:,}"
            reason = part.get("reason")
            told = (
                f"from {part.get('tier')}" if reason is None else f"computed: {str(reason).replace('_', ' ')}"
            )
            if reason is not None and part.get("tier"):
                told += f", last in {part['tier']}"
            if part.get("ago_s") is not None:
                told += f", {part['ago_s']:.0f} s ago"
            detail = f" ({part['detail']})" if part.get("detail") else ""
            self._console.print(Text(f"{span} {visible(told + detail)}"))
        if answer.get("difference"):
            self.difference(answer["difference"], ("asked", "cached"))

    def difference(self, told: Mapping[str, Any], names: tuple[str, str]) -> None:
        """Where it breaks, both sides with what differs marked, what it looks like, and what to do."""
        self._console.print(Text.assemble("It breaks at ", (_place(told), "bold"), "."))
        if told.get("asked") is not None:
            self._texts(told, names)
        elif told["asked_ids"] or told["cached_ids"]:
            width = max(map(len, names))
            for name, key in zip(reversed(names), ("cached_ids", "asked_ids"), strict=True):
                shown = " ".join(map(str, told[key][:12])) or "nothing more"
                self._console.print(Text(f"  {name:<{width}}  tokens {shown}"))
        else:
            self._console.print(Text("  the server does not show what stands there on either side"))
        if told.get("advice"):
            self._console.print(Text.assemble(("What to do: ", "bold"), visible(str(told["advice"]))))

    def further(self, told: Sequence[Mapping[str, Any]], number: int) -> None:
        """A line for each further difference."""
        for each in told:
            self._console.print(Text(f"  {_place(each)}"))
        if number > len(told):
            self._console.print(f"  and {number - len(told):,} more")

    def notes(self, notes: Sequence[str]) -> None:
        """A line for each."""
        for note in notes:
            self._console.print(Text(f"Note: {visible(str(note))}"))

    def _texts(self, told: Mapping[str, Any], names: tuple[str, str]) -> None:
        before = str(told.get("before") or "")[-_SHOWN_BEFORE:]
        asked, cached = (before + str(told.get(key) or "") for key in ("asked", "cached"))
        start, behind = _differing(asked, cached)
        width = max(map(len, names))
        for name, text, colour in zip(reversed(names), (cached, asked), _COLOURS, strict=True):
            end = len(text) - behind
            self._console.print(
                Text.assemble(
                    f"  {name:<{width}}  ",
                    (visible(text[:start]), "dim"),
                    (f"{self._marks[0]}{visible(text[start:end])}{self._marks[1]}", f"bold {colour}"),
                    (visible(text[end:]), "dim"),
                ),
                soft_wrap=True,
            )


def _differing(asked: str, cached: str) -> tuple[int, int]:
    """Where what differs begins in both texts, and how many characters stand behind it; whole words, numbers and times."""
    start = same_characters(asked, cached)
    behind = same_characters(asked[start:][::-1], cached[start:][::-1])
    while start and _WORD.match(asked[start - 1]):
        start -= 1
    while behind and _WORD.match(asked[-behind]):
        behind -= 1
    return start, behind


def visible(text: str) -> str:
    """The text on one line, with what cannot be printed written out."""
    return "".join(
        _NAMES.get(one) or (one if one.isprintable() else one.encode("unicode_escape").decode())
        for one in text
    )


def _place(told: Mapping[str, Any]) -> str:
    section = f", {told['section']}" if told.get("section") else ""
    kind = f": {str(told['kind']).replace('_', ' ')}" if told.get("kind") else ""
    return visible(f"token {told['at_token']:,}{section}{kind}")
