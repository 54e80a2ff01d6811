"""Which nodes of a radix index change, kept in mind for one who goes through all of them meanwhile."""


class Watch:
    """Off until somebody begins; one at a time watches. The radix index's thread calls it."""

    def __init__(self) -> None:
        self._changed: set[int] | None = None

    @property
    def on(self) -> bool:
        """Whether somebody watches."""
        return self._changed is not None

    def note(self, number: int) -> None:
        """The node of this number was made, changed or taken out."""
        if self._changed is not None:
            self._changed.add(number)

    def begin(self) -> None:
        """Keep in mind from now on which nodes change."""
        assert self._changed is None, "somebody is watching"
        self._changed = set()

    def take(self) -> set[int]:
        """Numbers whose nodes have changed since the last call; what follows a node is no part of it."""
        assert self._changed is not None, "nobody watches"
        changed, self._changed = self._changed, set()
        return changed

    def end(self) -> None:
        """Nobody watches any more."""
        self._changed = None
