"""In what two identities differ, in words."""

import re
from collections.abc import Mapping
from typing import Final

_DIGEST: Final = re.compile(r"[0-9a-f]{24,}")
_DIGEST_LETTERS: Final = 12


def differing_facts(there: Mapping[str, str], here: Mapping[str, str]) -> tuple[str, ...]:
    """A phrase for each fact that differs, by name, such as "kv_dtype: float16 there, bfloat16 here"."""
    names = sorted({*there, *here})
    return tuple(
        f"{name}: {_told(there.get(name))} there, {_told(here.get(name))} here"
        for name in names
        if there.get(name) != here.get(name)
    )


def shortened(text: str) -> str:
    """A fact for people: of long digests the beginning."""
    return _DIGEST.sub(lambda digest: digest[0][:_DIGEST_LETTERS], text)


def _told(value: str | None) -> str:
    return "not set" if value is None else shortened(value)
