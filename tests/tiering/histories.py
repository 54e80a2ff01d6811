"""Short histories drawn by hypothesis, of anything that takes actions and comes to an end."""

from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule


class Histories(RuleBasedStateMachine):
    """Makes `kind(choose)`, lets it `act` and `end`; hypothesis makes a history that fails shorter still."""

    kind: ClassVar[type]

    def __init__(self) -> None:
        super().__init__()
        self.lives = None

    @initialize(data=st.data())
    def make(self, data):
        self.data = data
        self.lives = self.kind(self.choose)

    @rule(data=st.data())
    def act(self, data):
        self.data = data
        self.lives.act()

    def choose(self, several):
        """A draw; at the end, where nothing can be drawn any more, the first."""
        return several[0] if self.data is None else self.data.draw(st.sampled_from(several))

    def teardown(self):
        self.data = None
        if self.lives is not None:
            self.lives.end()
