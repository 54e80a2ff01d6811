import random
import time

import pytest

from tests.tiering.mover_walk import MoverWalk


@pytest.mark.parametrize("block", range(20))
def test_walk(block):
    for seed in range(block * 100, (block + 1) * 100):
        walk = MoverWalk(random.Random(seed).choice)
        for _ in range(60):
            walk.act()
        walk.end()

from collections import Counter
from tests.tiering.cache_walk import CacheWalk

@pytest.mark.parametrize("block", range(10))
def test_cache_walk(block):
    c = Counter()
    for seed in range(block * 10, (block + 1) * 10):
        walk = CacheWalk(random.Random(seed).choice)
        try:
            for _ in range(200):
                walk.act()
            c += walk.end()
        except BaseException:
            print("SEED", seed)
            raise
    print(c)
