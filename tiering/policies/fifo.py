"""First in, first out."""

from tiering.policies.keyed import Keyed
from tiering.policies.policy import Name


class FIFO(Keyed):
    """Gives up the block that entered first; a use changes nothing."""

    def enter(self, name: Name, position: int) -> None:  # noqa: ARG002 - all are worth the same
        self._place(name)

    def use(self, name: Name) -> None:
        pass

    def worth(self, name: Name) -> float:  # noqa: ARG002
        return 0.0
