"""What every eviction order owes, as plain functions: `law(policy)` for a policy's class. See docs/writing-a-policy.md."""

import pickle
import random
from collections.abc import Callable
from typing import Final

from tiering.policies.policy import Name, Policy, Standing

_CAPACITY: Final = 32
_ROUNDS: Final = 150
_MOST_BYTES: Final = 200
"""What an order may take for each block of its tier, ghosts included, once it is written down."""


class _Tier:
    """A tier of some blocks over a tree of prompts, and who may go from it: in a set and a dict."""

    def __init__(self, policy: type[Policy], seed: int = 0) -> None:
        self.policy = policy(_CAPACITY)
        self.random = random.Random(seed)
        self.above: dict[Name, Name | None] = {}
        self.held: set[Name] = set()
        self.left: list[Name] = []

    def prompt(self, num_blocks: int, branches: int) -> list[Name]:
        """Names of a prompt's blocks, from its first: equal prefixes have equal names."""
        chain, name = [], 1
        for _ in range(num_blocks):
            name = hash((name, self.random.randrange(branches))) % 2**61
            chain.append(name)
        return chain

    def standing(self, name: Name) -> Standing:
        """As the core tells it."""
        assert name in self.above, f"a block was asked about that is not in the order: {name}"
        if name in self.held:
            return Standing.HELD
        return Standing.PARENT if name in self.above.values() else Standing.FREE

    def free(self) -> set[Name]:
        """Who may go."""
        return {name for name in self.above if self.standing(name) is Standing.FREE}

    def run(self, prompt: list[Name]) -> None:
        """A request: its blocks come from the last to the first, then those that were there are used."""
        num_found = next((at for at, name in enumerate(prompt) if name not in self.above), len(prompt))
        self.held = set(prompt)
        for at in range(len(prompt) - 1, num_found - 1, -1):
            if len(self.above) == _CAPACITY:
                self.evict(prompt[at])
            self.policy.enter(prompt[at], at)
            self.above[prompt[at]] = prompt[at - 1] if at else None
        for name in reversed(prompt[:num_found]):
            self.policy.use(name)
        self.held = set()

    def evict(self, coming: Name | None = None) -> Name | None:
        """Have one go, and tell that nothing follows the one above it any more."""
        free = self.free()
        victim = self.policy.evict(self.standing, coming)
        assert (victim is None) == (not free), f"{len(free)} blocks may go, and {victim} was answered"
        if victim is not None:
            assert victim in free, "the victim is held, others follow it, or it is not there"
            self._take_out(victim)
        return victim

    def leave(self, name: Name) -> None:
        """One goes that nothing follows, for other reasons than room."""
        self.policy.leave(name)
        self._take_out(name)

    def _take_out(self, name: Name) -> None:
        above = self.above.pop(name)
        self.left.append(name)
        if above is not None and above not in self.above.values() and above in self.above:
            self.policy.freed(above)


def gives_up_only_what_may_go(policy: type[Policy]) -> None:
    """Never a parent before its child, never one that is held, each once, and somebody as long as somebody may go."""
    for seed in range(3):
        tier = _Tier(policy, seed)
        for _ in range(_ROUNDS):
            tier.run(tier.prompt(tier.random.randint(1, 12), 2))
        while tier.above:
            assert tier.evict() is not None, "a block is never given up"


def says_none_if_nobody_may_go(policy: type[Policy]) -> None:
    """All are held; then they are not, and none was lost."""
    tier = _Tier(policy)
    tier.run(tier.prompt(12, 2))
    tier.held = set(tier.above)
    assert tier.evict() is None, "a held block was given up"
    tier.held = set()
    for _ in range(12):
        assert tier.evict() is not None, "a block was lost while it was held"


def forgets_what_left(policy: type[Policy]) -> None:
    """What went for other reasons is not offered, and can come back as new."""
    tier = _Tier(policy)
    for number in range(_ROUNDS):
        tier.run(tier.prompt(tier.random.randint(1, 8), 2))
        if number % 3 == 0:
            tier.leave(tier.random.choice(sorted(tier.free())))
    while tier.above:
        tier.evict()


def remembers_a_bounded_number(policy: type[Policy]) -> None:
    """However many blocks pass through a tier, an order does not grow."""
    tier = _Tier(policy)
    sizes = []
    for _ in range(2):
        for _ in range(8 * _CAPACITY):
            tier.run(tier.prompt(tier.random.randint(1, 12), 1000))
        sizes.append(len(pickle.dumps(vars(tier.policy))))
    assert max(sizes) < _MOST_BYTES * _CAPACITY, f"an order for {_CAPACITY} blocks takes {max(sizes)} bytes"


def does_the_same_again(policy: type[Policy]) -> None:
    """The same requests have the same blocks go."""
    runs = []
    for _ in range(2):
        tier = _Tier(policy, seed=7)
        for _ in range(_ROUNDS):
            tier.run(tier.prompt(tier.random.randint(1, 12), 2))
        runs.append(tier.left)
    assert runs[0] == runs[1], "the order depends on something else than what it was told"


LAWS: Final[tuple[Callable[[type[Policy]], None], ...]] = (
    gives_up_only_what_may_go,
    says_none_if_nobody_may_go,
    forgets_what_left,
    remembers_a_bounded_number,
    does_the_same_again,
)
"""All of them."""
