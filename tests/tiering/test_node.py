"""A node's blocks are found among the bytes of their ids."""

import numpy as np
import pytest

from tiering.node import Node


@pytest.mark.parametrize("ids", [[0x01010100, 0x01010101, 1], [7], [2**31 - 1, 0, 2**24, 1]])
def test_a_block_is_found_in_its_place_whatever_its_neighbours_look_like(ids):
    node = Node(0, None, b"", np.array(ids, dtype=np.int32).tobytes())
    assert [node.place(block) for block in ids] == list(range(len(ids)))


def test_a_block_that_is_elsewhere_is_not_found():
    """Nor one that only the end of an id and the beginning of the next look like."""
    with pytest.raises(AssertionError, match="not where the index says"):
        Node(0, None, b"", np.array([0x01010100, 0x00010101], dtype=np.int32).tobytes()).place(0x01010101)
