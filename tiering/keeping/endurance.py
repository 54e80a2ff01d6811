"""How much may be written to a medium that wears out."""

from typing import Final

_DAY_S: Final = 86_400.0


class Endurance:
    """So many bytes a day, an hour's worth of which may be saved up.

    What is written without asking, as by hand, counts too: it is owed, and nothing else is written until it is paid off.
    """

    def __init__(self, bytes_per_day: float, *, least_bytes: int = 1, saved_up_s: float = 3600.0) -> None:
        """A rate, and for how long what was not written may be written later; but `least_bytes` may always be saved up."""
        if bytes_per_day <= 0:
            raise ValueError(f"bytes_per_day must be above 0, not {bytes_per_day}")
        self._rate = bytes_per_day / _DAY_S
        self._most_bytes = max(self._rate * saved_up_s, least_bytes)
        self._left_bytes = self._most_bytes
        self._since_s: float | None = None

    def left_bytes(self, now_s: float) -> float:
        """What may be written now; below 0 if more was than may be. `now_s`: on any clock that does not go backwards."""
        since_s = now_s if self._since_s is None else self._since_s
        self._left_bytes = min(self._most_bytes, self._left_bytes + self._rate * (now_s - since_s))
        self._since_s = now_s
        return self._left_bytes

    def write(self, num_bytes: int) -> None:
        """So many bytes are written, or are on their way. Fewer than 0: so many of them were not, after all."""
        self._left_bytes = min(self._most_bytes, self._left_bytes - num_bytes)

    def check(self) -> None:
        """Raise AssertionError if more is left than can be saved up."""
        assert self._left_bytes <= self._most_bytes, f"{self._left_bytes} bytes are left to write"
