"""The radix index finds exactly what a set of tuples finds."""

import gc
import itertools

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tiering import nodes, pages
from tiering.loops.states import COUNT, FIRST, LAST, LIFE, NEWER, NEWEST, OLDER, UP
from tiering.planting import NewRuns
from tiering.radix import RadixIndex
from tiering.residency import NO_BLOCK, Residency, State, Tier

BLOCK_TOKENS = 2
# Token ids whose bytes look alike, so that a comparison that is out of step by a byte or a token would be noticed.
TOKEN = st.sampled_from([0, 1, 256, -1])
PROMPT = st.lists(TOKEN, max_size=26)


def tokens_of(numbers):
    return np.array(numbers, dtype=np.int32)


def blocks_of(numbers):
    """The whole blocks of a prompt as a tuple of tuples."""
    whole = len(numbers) - len(numbers) % BLOCK_TOKENS
    return tuple(tuple(numbers[at : at + BLOCK_TOKENS]) for at in range(0, whole, BLOCK_TOKENS))


class Machine(RuleBasedStateMachine):
    """The oracle is a dict from a path, a tuple of blocks, to the id of its last block."""

    @initialize(
        max_node_blocks=st.sampled_from([1, 2, 4, 128]),
        alike=st.booleans(),
        prompts=st.lists(PROMPT, min_size=2, max_size=5),
    )
    def make(self, max_node_blocks, alike, prompts):
        self.residency = Residency(4)
        self.index = RadixIndex(BLOCK_TOKENS, self.residency, max_node_blocks)
        if alike:  # all blocks have the same hash
            self.index._nodes._keys = np.zeros(BLOCK_TOKENS + 2, dtype=np.uint64)
            self.index._nodes._tie()
        self.oracle = {}
        for prompt in prompts:
            self.insert(prompt)

    def expected(self, path):
        return [self.oracle[path[: i + 1]] for i in range(len(path))]

    def longest(self, path):
        return max((path[:n] for n in range(len(path) + 1) if not n or path[:n] in self.oracle), key=len)

    def learn(self, path, new_ids):
        """Enter what an insert returned for the blocks of a path from block `len(path) - len(new_ids)`."""
        known = set(self.oracle.values())
        for n, block in enumerate(new_ids.tolist(), start=len(path) - len(new_ids) + 1):
            if path[:n] in self.oracle:
                assert block == self.oracle[path[:n]]
            else:
                assert block not in known
                known.add(block)
                self.oracle[path[:n]] = block

    @rule(prompt=PROMPT)
    def insert(self, prompt):
        path = blocks_of(prompt)
        ids = self.index.insert(tokens_of(prompt))
        assert len(ids) == len(path)
        self.learn(path, ids)

    @rule(prompt=PROMPT)
    def match(self, prompt):
        ids = self.index.match(tokens_of(prompt))
        assert ids.dtype == np.intp
        assert ids.tolist() == self.expected(self.longest(blocks_of(prompt)))

    @precondition(lambda self: self.oracle)
    @rule(data=st.data(), tail=PROMPT)
    def match_what_is_there_and_more(self, data, tail):
        path = data.draw(st.sampled_from(sorted(self.oracle)))
        self.match([token for block in path for token in block] + tail)

    @precondition(lambda self: self.oracle)
    @rule(data=st.data(), tail=PROMPT)
    def insert_below_what_is_there(self, data, tail):
        path = data.draw(st.sampled_from(sorted(self.oracle)))
        self.insert([token for block in path for token in block] + tail)

    @rule(
        data=st.data(),
        wanted=st.lists(TOKEN, max_size=BLOCK_TOKENS),
        same=st.sampled_from([-1, 0xFF]),
        most=st.integers(1, 5),
    )
    def onwards(self, data, wanted, same, most):
        """Below any block: a chain that is there, and that begins as much like what is wanted as anything does."""
        path = data.draw(st.sampled_from([(), *sorted(self.oracle)]))
        found = self.index.onwards(self.oracle.get(path, NO_BLOCK), tokens_of(wanted).tobytes(), same, most)
        children = {child[-1] for child in self.oracle if child[:-1] == path}
        chain = blocks_of(np.frombuffer(found, dtype="<i4").tolist())
        assert bool(chain) == bool(children)
        assert all(path + chain[:n] in self.oracle for n in range(1, len(chain) + 1))
        ends = not any(other[:-1] == path + chain for other in self.oracle)
        assert len(chain) == most or (len(chain) < most and ends), "it goes on as far as it may"

        def alike(block):
            pairs = zip(block, wanted, strict=False)
            num_alike = next((n for n, (one, other) in enumerate(pairs) if (one ^ other) & same), len(wanted))
            anothers = any((one ^ other) & ~same for one, other in zip(block, wanted, strict=False))
            return -1 if anothers and num_alike < len(wanted) else num_alike

        if chain:
            assert alike(chain[0]) == max(map(alike, children))

    @rule(data=st.data(), tail=PROMPT)
    def extend(self, data, tail):
        path = data.draw(st.sampled_from([(), *sorted(self.oracle)]))
        below = blocks_of(tail)
        edge = tokens_of([token for block in below for token in block]).tobytes()
        ids = self.index.extend(self.oracle.get(path, NO_BLOCK), edge)
        assert len(ids) == len(below)
        self.learn(path + below, ids)

    @precondition(lambda self: self.oracle)
    @rule(data=st.data())
    def remove_a_subtree_in_any_order(self, data):
        top = data.draw(st.sampled_from(sorted(self.oracle)))
        left = {path for path in self.oracle if path[: len(top)] == top}
        order = []
        while left:
            leaves = sorted(path for path in left if not any(other[:-1] == path for other in left))
            order.append(data.draw(st.sampled_from(leaves)))
            left.remove(order[-1])
        removed = [self.oracle.pop(path) for path in order]
        self.index.remove(np.array(removed, dtype=np.intp))

    @precondition(lambda self: self.oracle)
    @rule(data=st.data(), n=st.integers(1, 4))
    def remove_a_tail(self, data, n):
        path = data.draw(st.sampled_from(sorted(self.oracle)))
        tail = []
        while path and len(tail) < n and not any(other[:-1] == path for other in self.oracle):
            tail.append(self.oracle.pop(path))
            path = path[:-1]
        self.index.remove(np.array(tail, dtype=np.intp))

    @precondition(lambda self: self.oracle)
    @rule(data=st.data())
    def subtree(self, data):
        top = data.draw(st.sampled_from([(), *sorted(self.oracle)]))
        ids = self.index.subtree(self.oracle.get(top, NO_BLOCK)).tolist()
        paths = {block: path for path, block in self.oracle.items() if path[: len(top)] == top}
        assert sorted(ids) == sorted(paths)
        for at, block in enumerate(ids):
            parent = self.oracle.get(paths[block][:-1])
            assert paths[block][:-1] == top[:-1] or parent in ids[:at]

    @invariant()
    def same(self):
        self.index.check()
        self.residency.check()
        assert len(self.index) == len(self.residency) == len(self.oracle)
        for path, block in self.oracle.items():
            assert self.index.tokens_up(block, len(path)) == [
                tokens_of(each).tobytes() for each in reversed(path)
            ]
            assert self.index.path(block).tolist() == self.expected(path)
            assert self.residency.parent[block] == self.oracle.get(path[:-1], NO_BLOCK)

    def teardown(self):
        for path in getattr(self, "oracle", ()):
            ids = self.index.match(tokens_of([token for block in path for token in block]))
            assert ids.tolist() == self.expected(path)


def test_the_index_follows_a_set_of_tuples(monkeypatch):
    """With a table that is being replaced by a larger one at most times."""
    monkeypatch.setattr(nodes, "_FEW", 2)
    monkeypatch.setattr(nodes, "_MOVED_PLACES", 2)
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=130, stateful_step_count=40, deadline=None, derandomize=True)
    )


def random_tokens(seed, num_tokens):
    return np.random.default_rng(seed).integers(0, 50_000, num_tokens, dtype=np.int32)


@pytest.mark.parametrize("num_blocks", [1, 127, 128, 129, 511, 512, 513, 640, 2000])
def test_long_paths_match_at_any_length_and_any_point_of_divergence(num_blocks):
    """Covers the head that match converts first, and its end in the middle of an edge."""
    index = RadixIndex(16, Residency(4))
    whole = random_tokens(0, 2000 * 16)
    ids = index.insert(whole)
    assert index.match(whole[: num_blocks * 16 + 15]).tolist() == ids[:num_blocks].tolist()
    other = whole.copy()
    other[num_blocks * 16 - 1] += 1
    assert index.match(other).tolist() == ids[: num_blocks - 1].tolist()
    index.insert(other)
    index.check()
    assert index.match(whole).tolist() == ids.tolist()


def test_edges_out_of_step_with_the_head_are_found():
    """Nodes of many lengths, so that the head's end falls at every place within an edge."""
    index = RadixIndex(16, Residency(4), max_node_blocks=4)  # the head is 16 blocks
    whole = random_tokens(1, 40 * 16)
    for num_blocks in range(1, 40, 3):
        index.insert(np.concatenate([whole[: num_blocks * 16], random_tokens(num_blocks, 32)]))
    ids = index.insert(whole)
    for num_blocks in range(41):
        assert index.match(whole[: num_blocks * 16]).tolist() == ids[:num_blocks].tolist()


def test_an_index_without_blocks_finds_nothing():
    index = RadixIndex(16, Residency(4))
    for num_tokens in (0, 15, 16, 5000):
        assert index.match(random_tokens(0, num_tokens)).tolist() == []
    assert index.insert(random_tokens(0, 15)).tolist() == index.extend(NO_BLOCK, b"").tolist() == []
    assert index.path(NO_BLOCK).tolist() == index.subtree(NO_BLOCK).tolist() == []
    index.remove(np.empty(0, dtype=np.intp))
    index.check()


def test_a_strided_view_of_tokens_means_its_elements():
    index = RadixIndex(2, Residency(4))
    ids = index.insert(np.array([1, 2, 3, 4], dtype=np.int32))
    strided = np.array([1, 9, 2, 9, 3, 9, 4, 9], dtype=np.int32)[::2]
    assert index.match(strided).tolist() == ids.tolist()


@pytest.mark.parametrize(
    "tokens", [np.zeros(4, np.int64), np.zeros(4, np.uint32), np.zeros(4, ">i4"), np.zeros((2, 2), np.int32)]
)
def test_other_arrays_are_refused(tokens):
    """An int64 array read as int32 would silently be twice as many tokens."""
    index = RadixIndex(2, Residency(4))
    with pytest.raises(ValueError, match="little-endian int32"):
        index.match(tokens)
    with pytest.raises(ValueError, match="little-endian int32"):
        index.insert(tokens)


@pytest.mark.parametrize("sizes", [(0, 1), (16, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        RadixIndex(sizes[0], Residency(4), sizes[1])


def test_an_edge_of_broken_blocks_is_refused():
    with pytest.raises(ValueError, match="12 bytes"):
        RadixIndex(2, Residency(4)).extend(NO_BLOCK, bytes(12))


def chain_and_branch():
    residency = Residency(8)
    index = RadixIndex(1, residency)
    trunk = index.insert(tokens_of([1, 2, 3, 4]))
    branch = index.insert(tokens_of([1, 2, 5]))
    return residency, index, trunk, branch


@pytest.mark.parametrize("wrong", [[1], [2], [3, 1], [2, 3], [4, 2], [3, 3], [6]])
def test_only_leaves_can_be_removed_and_each_once(wrong):
    _, index, *_ = chain_and_branch()
    with pytest.raises(AssertionError):
        index.remove(np.array(wrong, dtype=np.intp))


def test_a_block_that_a_tier_holds_cannot_be_removed():
    residency, index, trunk, _ = chain_and_branch()
    residency.state[Tier.DISK, trunk[-1]] = State.WRITING
    with pytest.raises(AssertionError, match="absent everywhere"):
        index.remove(trunk[-1:])


def test_asking_for_what_is_there_splits_nothing():
    _, index, trunk, _ = chain_and_branch()
    num_nodes = len(index._nodes)
    assert index.insert(tokens_of([1])).tolist() == trunk[:1].tolist()
    assert index.insert(tokens_of([1, 2, 3])).tolist() == trunk[:3].tolist()
    assert index.extend(int(trunk[0]), tokens_of([2]).tobytes()).tolist() == trunk[1:2].tolist()
    index.insert(tokens_of([1, 2, 3, 4, 5]))
    assert index.extend(int(trunk[2]), tokens_of([4]).tobytes()).tolist() == trunk[3:].tolist()
    assert len(index._nodes) == num_nodes


def test_removed_ids_come_back_for_the_next_path():
    _, index, trunk, branch = chain_and_branch()
    index.remove(np.array([trunk[3], branch[2], trunk[2]]))
    assert index.match(tokens_of([1, 2, 5])).tolist() == trunk[:2].tolist()
    again = index.insert(tokens_of([1, 2, 6, 7, 8]))
    assert sorted(again[2:].tolist()) == sorted([trunk[3], branch[2], trunk[2]])
    index.check()


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: setattr(index, "_num_blocks", 4),
        lambda index: index._nodes._free.append(0),
        lambda index: index._nodes._free.append(1),
        lambda index: index._nodes.let_go(2),
        lambda index: index._nodes.after.__setitem__(0, -1),
        lambda index: index._nodes.after.__setitem__(1, 2 - 4),
        lambda index: index._nodes.after.__setitem__(1, 0 - 2),
        lambda index: index._nodes.tokens.__setitem__(2, 7),
        lambda index: index._nodes._slots.__setitem__(slice(None), 0),
        lambda index: index._residency.node.__setitem__(0, 0),
        lambda index: index._residency.parent.__setitem__(1, 2),
        lambda index: index._residency.parent.__setitem__(0, 3),
        lambda index: index._residency.num_children.__setitem__(1, 1),
        lambda index: index._residency.num_children.__setitem__(0, 2),
        lambda index: index._residency.live.__setitem__(4, False),
        lambda index: index._nodes.cells.__setitem__((1, COUNT), 1),
        lambda index: index._nodes.cells.__setitem__((2, LAST), 0),
        lambda index: index._nodes.cells.__setitem__((2, UP), 1),
        lambda index: index._nodes.cells.__setitem__((2, OLDER), 1),
        lambda index: index._nodes.cells.__setitem__((2, FIRST), 2),
        lambda index: index._nodes.cells.__setitem__((2, NEWEST), 1),
        lambda index: index._nodes.cells.__setitem__((2, NEWER), 1),
        lambda index: index._nodes._top.__setitem__(0, -2 - 1),
        lambda index: setattr(index._nodes, "_keys", index._nodes._keys + np.uint64(1 << 40)),
        lambda index: setattr(index._nodes, "_older", index._nodes._slots.copy()),
        lambda index: setattr(index._nodes, "_slots", index._nodes._slots[:4]),
        lambda index: setattr(index._nodes, "_top", index._nodes._top.copy()),
    ],
)
def test_check_sees_damage(damage):
    _, index, *_ = chain_and_branch()
    index.check()
    damage(index)
    with pytest.raises(AssertionError):
        index.check()


# ---- chains of nodes


def chat(num_turns, turn_blocks=8):
    """A prompt that grew by so many blocks at a time, another turn beside each: nodes of 512 bytes, or as long as that is."""
    index = RadixIndex(16, Residency(4))
    whole = random_tokens(2, num_turns * turn_blocks * 16)
    for end in range(turn_blocks * 16, len(whole) + 1, turn_blocks * 16):
        index.insert(whole[:end])
        index.insert(np.concatenate([whole[: end - turn_blocks * 16], random_tokens(end, turn_blocks * 16)]))
    return index, whole


@pytest.mark.parametrize(("num_turns", "turn_blocks"), [(40, 8), (150, 1), (40, 128)])
def test_a_path_of_many_nodes_is_found_whichever_children_were_taken_last(num_turns, turn_blocks):
    index, whole = chat(num_turns, turn_blocks)
    ids = index.match(whole)  # the children beside it were taken last
    assert len(ids) == num_turns * turn_blocks
    assert index.match(whole).tolist() == index.insert(whole).tolist() == ids.tolist()
    assert index.path(ids.item(-1)).tolist() == ids.tolist()
    index.check()


def test_blocks_whose_hashes_are_equal_are_told_apart_by_their_tokens():
    """Behind one block, behind different ones, and as some of them leave."""
    index = RadixIndex(1, Residency(4))
    index._nodes._keys = np.zeros(3, dtype=np.uint64)
    prompts = [tokens_of([above, own]) for above in range(6) for own in range(6)]
    paths = [index.insert(prompt).tolist() for prompt in prompts]
    assert len({tuple(path) for path in paths}) == 36
    for gone in range(0, 36, 5):
        index.remove(np.array(paths[gone][1:], dtype=np.intp))
        paths[gone].pop()
        index.check()
        assert [index.match(prompt).tolist() for prompt in prompts] == paths


def widened(num_removed=0):
    """An index whose table was just replaced by a larger one, and the ids of its blocks, of which the first are gone."""
    index = RadixIndex(1, Residency(4))
    # the same each time: with some nothing lies in those places that are moved first
    index._nodes._keys = np.random.default_rng(0).integers(2**64, size=3, dtype=np.uint64)
    ids = [index.insert(tokens_of([number])).item() for number in range(65)]
    assert len(index._nodes._older) == 128, "a part of it was moved only"
    for block in ids[:num_removed]:
        index.remove(np.array([block], dtype=np.intp))
        index.check()
    return index, ids


@pytest.mark.parametrize("num_removed", [0, 1, 40, 65])
def test_children_are_found_while_their_table_is_replaced(num_removed):
    """In the older and in the newer one, and those that left meanwhile in neither, until the older one is gone."""
    index, ids = widened(num_removed)
    for number, block in enumerate(ids):
        assert index.match(tokens_of([number])).tolist() == [block][: number >= num_removed]
    for number in range(65, 73):
        index.insert(tokens_of([number]))
        index.check()
    assert not len(index._nodes._older)
    for number, block in enumerate(ids[num_removed:], num_removed):
        assert index.match(tokens_of([number])).tolist() == [block]


@pytest.mark.parametrize(
    "damage",
    [
        lambda nodes: setattr(nodes, "_num_moved", 128),
        lambda nodes: setattr(nodes, "_num_moved", 0),
        lambda nodes: setattr(nodes, "_older", np.zeros((128, 2), dtype=np.uint64)),
    ],
)
def test_check_sees_a_table_that_is_half_replaced_wrongly(damage):
    index, _ = widened()
    damage(index._nodes)
    with pytest.raises(AssertionError):
        index.check()


def test_arrays_grow_without_being_copied(monkeypatch):
    """Nothing here keeps an array while another is made: a copy would stop whoever computes for long."""
    made = []
    zeros = pages._zeros
    monkeypatch.setattr(pages, "_zeros", lambda num_bytes: made.append(num_bytes) or zeros(num_bytes))
    index = RadixIndex(16, Residency(4))
    num_made = len(made)
    for seed in range(40):
        index.insert(random_tokens(seed, 20 * 16))
        index.insert(np.concatenate([random_tokens(seed, 10 * 16), random_tokens(99, 16)]))
    run = random_tokens(77, 2 * 16)
    assert index.plant(NewRuns(run.tobytes(), [1, 1], [NO_BLOCK] * 2, [-1] * 2, [False] * 2))[1] == 2
    index.check()
    assert len(made) == num_made


@pytest.mark.parametrize("num_columns", [0, 1])
@pytest.mark.parametrize("by_plant", [False, True])
def test_where_there_is_no_memory_for_tokens_no_id_is_lost(monkeypatch, num_columns, by_plant):
    """The residency has grown already: what it gave out is given back, and the next that asks gets it."""
    residency = Residency(4)
    index, prompt = RadixIndex(1, residency, max_node_blocks=8), np.arange(3, 11, dtype=np.int32)
    index.insert(np.arange(3, dtype=np.int32))
    grow, wanted = pages.GrowingPages.grow, []

    def enter():
        if by_plant:
            return index.plant(NewRuns(prompt.tobytes(), [8], [NO_BLOCK], [-1], [True]))[0]
        return index.insert(prompt)

    def refused(some, num_bytes):
        if some in (index._nodes._pages_of_tokens, index._nodes._pages_of_after):
            wanted.append(some)
            if len(wanted) > num_columns:
                raise MemoryError
        grow(some, num_bytes)

    with monkeypatch.context() as short:
        short.setattr(pages.GrowingPages, "grow", refused)
        with pytest.raises(MemoryError):
            enter()
    assert (len(index), len(residency)) == (3, 3)
    index.check()
    residency.check()
    assert index.match(prompt).tolist() == []
    assert sorted(enter().tolist()) == [*range(3, 11)]
    index.check()
    residency.check()


@pytest.mark.parametrize(
    ("how", "num_times"),
    [*itertools.product(["insert", "split"], range(2)), *itertools.product(["plant"], range(5))],
)
def test_where_there_is_no_memory_for_nodes_no_block_is_added(monkeypatch, num_times, how):
    """Wherever it runs out: of the table of children, which is asked for first, and of the records. Both grow several times where nodes are
    planted one by one; what was planted before stays.
    """
    residency = Residency(128)
    index = RadixIndex(1, residency, max_node_blocks=2)
    index.insert(np.arange(3, dtype=np.int32))
    # as many nodes as the table has room for, so that a split is the first to need more
    for token in range(50, 56):
        index.insert(np.array([token], dtype=np.int32))
    prompt = np.arange(100, 180, dtype=np.int32)
    if how == "split":
        prompt[0] = 0  # the first node goes on otherwise
    grow, zeros, left = pages.GrowingPages.grow, np.zeros, [num_times]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError

    def enter():
        if how != "plant":
            return index.insert(prompt)
        none = [NO_BLOCK] * len(prompt)
        ids, num_runs = index.plant(
            NewRuns(prompt.tobytes(), [1] * len(none), none, none, [False] * len(none))
        )
        rest = [index.extend(NO_BLOCK, token.tobytes()) for token in prompt[num_runs:]]
        return np.concatenate([ids, *rest])

    with monkeypatch.context() as short:
        short.setattr(pages.GrowingPages, "grow", lambda *given: count() or grow(*given))
        short.setattr(np, "zeros", lambda *given, **named: count() or zeros(*given, **named))
        with pytest.raises(MemoryError):
            enter()
    index.check()
    residency.check()
    assert len(residency) == len(index)
    if how != "plant":
        assert len(index) == 9
    assert index.match(np.arange(3, dtype=np.int32)).tolist() == [0, 1, 2]
    enter()
    assert len(residency) == len(index) == 9 + len(prompt) - (how == "split")
    index.check()
    residency.check()


def test_what_is_compiled_reads_no_tokens_that_are_not_there():
    """Runs with fewer tokens than they have blocks; blocks that have left the index, were never there, or are no block."""
    index = RadixIndex(4, Residency(4))
    ids = index.insert(tokens_of(range(8)))
    with pytest.raises(AssertionError, match="other tokens"):
        index.plant(NewRuns(bytes(16), [2], [NO_BLOCK], [-1], [True]))
    index.remove(ids[1:])
    calls = (
        index.subtree,
        index.following,
        index.path,
        index.tokens_up,
        lambda block: index.match_below(block, tokens_of(range(4))),
        lambda block: index.extend(block, bytes(16)),
        lambda block: index.append(block, tokens_of(range(4))),
        lambda block: index.remove(np.array([block])),
    )
    for call in calls:
        for block in (ids.item(1), 2, -4):  # the last would be the first one, counted from the end
            with pytest.raises(AssertionError, match="the index"):
                call(block)
        with pytest.raises(IndexError):
            call(10**7)
    index.check()
    assert len(index._residency) == len(index), "nor is an id given out for one that would follow them"


def test_a_number_may_be_given_out_more_often_than_it_can_be_counted():
    """An engine that evicts as many nodes as it adds gives out the same number all the time."""
    _, index, _, branch = chain_and_branch()
    number = index._residency.node.item(branch[-1])
    index._nodes.cells[number, LIFE] = 2**31 - 1
    life = index._nodes.life(number)
    index.remove(branch[-1:])
    assert index._nodes.life(number) != life
    assert index._residency.node[index.insert(tokens_of([7]))].tolist() == [number]
    index.check()


def test_tokens_are_found_beyond_where_32_bits_count_them():
    """Blocks so long, and ids so high, that the place of a token is no int32; most of that memory is never touched."""
    block_tokens = 2**17
    residency = Residency(2**14 + 8)
    index = RadixIndex(block_tokens, residency)
    residency.allocate(2**14)
    whole = np.arange(3 * block_tokens, dtype=np.int32)
    ids = index.insert(whole)
    assert ids.min() * block_tokens >= 2**31
    other = whole.copy()
    other[2 * block_tokens] = -1
    index.insert(other)
    assert index.match(whole).tolist() == ids.tolist()
    assert index.match(other).tolist()[:2] == ids[:2].tolist()
    assert index.tokens_up(ids.item(-1)) == [whole[2 * block_tokens :].tobytes()]


def test_hashes_follow_numbers_of_their_own():
    """So that nobody can make prompts whose blocks all look alike to the table."""
    tables = [RadixIndex(16, Residency(4))._nodes for _ in range(2)]
    assert len({table._keys.tobytes() for table in tables}) == 2


def test_the_index_makes_no_objects_for_the_garbage_collector():
    """A full collection would look at each, in all processes of which an index is a part."""
    index = RadixIndex(16, Residency(8192))
    index.insert(random_tokens(0, 16))
    gc.collect()
    before = len(gc.get_objects())
    ids = [index.insert(random_tokens(seed, 64)) for seed in range(1, 300)]
    assert len(ids) == 299
    assert len(gc.get_objects()) < before + 300, "no more than the arrays that were handed out"


def test_what_is_asked_below_a_block_is_what_follows_it():
    index, whole = chat(6)
    ids = index.match(whole).tolist()
    for num in (0, 1, 7, 8, 9, 47, 48):
        above = ids[num - 1] if num else NO_BLOCK
        assert index.match_below(above, whole[num * 16 :]).tolist() == ids[num:]
    assert index.match_below(ids[3], whole[3 * 16 :]).tolist() == []


def test_what_leaves_while_it_is_gone_through_is_passed_over():
    """And so is what takes its number afterwards."""
    index = RadixIndex(1, Residency(4))
    first = index.insert(tokens_of([1, 2]))
    second = index.insert(tokens_of([1, 3]))
    following = index.following(first.item(0))
    assert following.collect(1), "those below are yet to be looked at"
    index.remove(second[1:])
    index.insert(tokens_of([1, 4]))
    found = following.parents_first(10).tolist() + following.parents_first(10).tolist()
    assert found == [first.item(0), first.item(1)]
