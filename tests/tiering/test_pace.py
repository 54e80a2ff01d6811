"""How long things take in a simulation: what curves over tokens and bytes say, in blocks."""

import pytest

from tiering.costs import Curves, LoadCurve, PrefillCurve
from tiering.pace import ASSUMED, ASSUMED_TOKEN_BYTES, Pace
from tiering.simulate import Simulation, SimulationConfig
from tiering.trace import TraceRequest

PACE = Pace.of(ASSUMED, block_tokens=512, token_bytes=ASSUMED_TOKEN_BYTES)


def test_blocks_take_what_their_tokens_and_bytes_take():
    tokens, num_bytes = 8 * 512, 8 * 512 * ASSUMED_TOKEN_BYTES
    assert PACE.compute_s(4, 8) == pytest.approx(ASSUMED.prefill.seconds(4 * 512, tokens))
    host_s, disk_s = (ASSUMED.loads[tier].seconds(num_bytes) for tier in ("host", "disk"))
    assert PACE.promote_s(8, follows=False) == pytest.approx(host_s)
    assert PACE.promote_s(8, follows=False) + PACE.read_s(8, follows=False) == pytest.approx(disk_s)
    assert PACE.read_s(8, follows=True) < PACE.read_s(8, follows=False)
    bare = Pace(curves=Curves(prefill=PrefillCurve(token_s=1.0), loads={}))
    assert (bare.read_s(9, follows=False), bare.promote_s(9, follows=False)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="nothing is known of what computing takes"):
        Pace(curves=Curves(prefill=None, loads={}))


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
        pace = Pace.of(curves, block_tokens=512, token_bytes=ASSUMED_TOKEN_BYTES)
        config = SimulationConfig(device_blocks=12, host_blocks=12, disk_blocks=80, load=load, pace=pace)
        simulation = Simulation(config)
        outcome = simulation.run(requests)
        simulation.check()
        return outcome.ttft_s

    for disk_byte_s in (1e-10, 1e-8):
        always, never, auto = (ttft_s(load, disk_byte_s) for load in ("always", "never", "auto"))
        assert never[-1] == pytest.approx(PACE.compute_s(0, 8))
        assert sum(auto) <= 1.01 * min(sum(always), sum(never))
        assert auto[-1] == min(always[-1], never[-1])
    assert auto[-1] < always[-1], "the slow disk is left alone"
