"""A lease's gaps, by another way of finding them."""

from itertools import groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tiering.lease import NOT_CACHED, Lease

_NOTHING = np.empty(0, dtype=np.intp)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12), st.integers(0, 12))
def test_gaps_are_the_runs_that_are_neither_there_nor_arriving(positions, num_blocks):
    lease = Lease(_NOTHING, _NOTHING, np.full(len(positions), NOT_CACHED, dtype=np.int8), len(positions))
    for at, (ready, arriving) in enumerate(positions):
        lease.ready[at], lease.arriving[at] = ready, arriving
    missing = [at for at, there in enumerate(positions[:num_blocks]) if not any(there)]
    runs = [[at for _, at in run] for _, run in groupby(enumerate(missing), lambda each: each[1] - each[0])]
    assert lease.gaps(num_blocks) == [(run[0], run[-1] + 1) for run in runs]
