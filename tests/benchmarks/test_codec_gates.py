"""What `make bench-codec` holds against which bound."""

import numpy as np

from benchmarks.codec import gates, measure_type
from kvstore.baseline import LEARN_TOKENS
from kvstore.block import BlockLayout


def test_ratios_are_of_the_codec_and_of_whole_records():
    """Measured on a few blocks of numbers that encode, of both types that have gates."""
    rows = []
    for dtype, num_bytes in (("bfloat16", 2), ("float16", 2)):
        layout = BlockLayout(num_layers=2, num_kv_heads=1, head_dim=32, block_tokens=16, dtype=dtype)
        words = np.random.default_rng(0).standard_normal(
            (4, layout.block_bytes // num_bytes), dtype=np.float32
        )
        if dtype == "bfloat16":
            blocks = (words.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:
            blocks = words.astype(np.float16).view(np.uint8)
        first = np.concatenate([blocks] * (max(LEARN_TOKENS) // 64))
        rows += measure_type(dtype, layout, first, blocks, repeats=1)
    by_name = {gate["name"]: gate for gate in gates(rows)}
    assert len(by_name) == 6
    for dtype in ("bfloat16", "float16"):
        alone = by_name[f"ratio of {dtype}, the codec alone"]["value"]
        whole = by_name[f"ratio of {dtype}, records with all that they hold"]["value"]
        assert 0 < whole < alone, "a record has a header beside what is encoded"
