"""Leaving a thing alone that keeps failing."""


class Rest:
    """Begins when something has failed several times in a row, and is over after a while."""

    def __init__(self, failures: int, rest_s: float) -> None:
        """`failures`: how many in a row begin a rest of `rest_s` seconds."""
        self._failures, self._rest_s = failures, rest_s
        self._in_row = 0
        self.until_s = float("-inf")
        """From when on it may be tried. Asked at each step: an attribute is read fastest."""

    def note(self, error: Exception | None, now_s: float) -> bool:
        """It was tried, and failed or, without an error, did not. Whether a rest begins, which may be one of no length."""
        self._in_row = 0 if error is None else self._in_row + 1
        if self._in_row < self._failures:
            return False
        self._in_row = 0
        self.until_s = now_s + self._rest_s
        return True

    def end(self) -> None:
        """What made it fail has been put right: it may be tried at once."""
        self._in_row = 0
        self.until_s = float("-inf")
