"""Times on the virtual clock: in blocks as in tokens and bytes, and what cannot be told from what was measured."""

import pytest

from tiering.costs import Curves, LoadCurve, PrefillCurve
from tiering.durations import ASSUMED, ASSUMED_TOKEN_BYTES, BlockTimes, CurveTimes
from tiering.moves import Demote, Promote, Read, Write
from tiering.simulate import Simulation, SimulationConfig
from tiering.trace import TraceRequest

PREFILL = PrefillCurve(call_s=0.5, token_s=0.01, pair_s=1e-5)
LOADS = {
    "host": LoadCurve(latency_s=0.001, byte_s=1e-9),
    "disk": LoadCurve(latency_s=0.01, byte_s=5e-9),
}


def times(loads=LOADS):
    return CurveTimes.of(Curves(prefill=PREFILL, loads=loads), block_tokens=16, token_bytes=100)


def test_blocks_take_what_their_tokens_and_bytes_do():
    assert times().compute(10, 4) == pytest.approx(PREFILL.seconds(160, 64))
    assert times().move(Promote, 7, is_first=True) == pytest.approx(LOADS["host"].seconds(7 * 1600))
    assert times().move(Demote, 7, is_first=True) == times().move(Promote, 7, is_first=True)


def test_a_read_and_the_copy_up_together_take_what_loading_from_disk_does():
    for is_first, latency_s in ((True, 0.01), (False, 0.0)):
        both = sum(times().move(kind, 7, is_first=is_first) for kind in (Read, Promote))
        assert both == pytest.approx(latency_s + 7 * 1600 * 5e-9)
    assert times().move(Write, 7, is_first=True) == times().move(Read, 7, is_first=True)


def test_what_was_not_measured_cannot_be_simulated():
    with pytest.raises(ValueError, match="nothing was measured of computing"):
        CurveTimes.of(Curves(prefill=None, loads={}), block_tokens=16, token_bytes=1)
    with pytest.raises(ValueError, match="at least a token and a byte, not 0, 1"):
        CurveTimes.of(Curves(prefill=PREFILL, loads={}), block_tokens=0, token_bytes=1)
    with pytest.raises(ValueError, match="nothing was measured of loading from host and disk"):
        SimulationConfig(device_blocks=1, host_blocks=1, disk_blocks=1, times=times({}))
    SimulationConfig(device_blocks=1, times=times({}))
    with pytest.raises(ValueError, match="chooses by curves, and there are none"):
        SimulationConfig(device_blocks=1, load="auto")


def test_so_much_a_block():
    each = BlockTimes(compute_s=1.0, demote_s=2.0, promote_s=3.0, read_s=4.0, write_s=5.0)
    assert each.compute(100, 2) == 2.0
    assert [each.move(kind, 2, is_first=True) for kind in (Demote, Promote, Read, Write)] == [4, 6, 8, 10]


def test_what_is_simulated_takes_what_was_predicted_and_choosing_is_never_worse():
    """Twice the same long prompt, the second time when others have pushed it down to disk, which is slow or fast."""
    document, others = tuple(range(8)), [tuple(range(at, at + 4)) for at in range(100, 140, 4)]
    requests = [
        TraceRequest(at_s=1000.0 * at, blocks=blocks, input_tokens=0, output_tokens=0)
        for at, blocks in enumerate([document, *others, document])
    ]

    def ttft_s(load, disk_byte_s):
        loads = {**ASSUMED.loads, "disk": LoadCurve(byte_s=disk_byte_s)}
        curves = Curves(prefill=ASSUMED.prefill, loads=loads)
        known = CurveTimes.of(curves, block_tokens=512, token_bytes=ASSUMED_TOKEN_BYTES)
        config = SimulationConfig(device_blocks=12, host_blocks=12, disk_blocks=80, load=load, times=known)
        simulation = Simulation(config)
        outcome = simulation.run(requests)
        simulation.check()
        return outcome.ttft_s, known.move(Demote, 8, is_first=True) + known.compute(0, 8)

    for disk_byte_s in (1e-10, 1e-8):
        (always, _), (never, document_s), (auto, _) = (
            ttft_s(load, disk_byte_s) for load in ("always", "never", "auto")
        )
        assert never[-1] == pytest.approx(document_s), "others go down first"
        assert sum(auto) <= 1.01 * min(sum(always), sum(never))
        assert auto[-1] == min(always[-1], never[-1])
    assert auto[-1] < always[-1], "the slow disk is left alone"
