"""The core serves the right bytes whatever ends when, and in whatever way; nothing leaks and nothing hangs."""

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvstore.reasons import MissReason
from tests.tiering.memory_model import DIED, MemoryModel
from tiering.index import IndexConfig
from tiering.moves import Demote, Promote, Read, Write
from tiering.residency import Tier

RECORD_BYTES = 10


@st.composite
def configs(draw):
    host_slots = draw(st.integers(0, 6))
    disk_blocks = draw(st.integers(0, 8)) if host_slots else 0
    return IndexConfig(
        block_tokens=draw(st.integers(2, 4)),
        device_slots=draw(st.integers(2, 8)),
        host_slots=host_slots,
        disk_bytes=disk_blocks * RECORD_BYTES,
        record_bytes=RECORD_BYTES,
        loads=draw(st.integers(0, 7)) > 0,
        read_batch_blocks=draw(st.integers(1, 3)),
        read_budget_blocks=draw(st.integers(1, 6)),
        write_batch_blocks=draw(st.integers(1, 3)),
        write_budget_blocks=draw(st.integers(1, 6)),
        clean_share=draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        hole_ttl_s=5.0,
        disk_failures=2,
        disk_rest_s=10.0,
    )


class Machine(RuleBasedStateMachine):
    @initialize(config=configs(), data=st.data())
    def make(self, config, data):
        self.waiting = []
        self.damaged = False
        self.model = MemoryModel(config, record_bytes=self.sizes(data))
        self.config = config

    @staticmethod
    def sizes(data) -> Callable[[], int]:
        return lambda: data.draw(st.sampled_from([RECORD_BYTES, 4]), label="stored bytes")

    # ---- requests

    def prompt(self, data):
        """Blocks of equal tokens over an alphabet of two: prompts share, fork and end on and off block boundaries."""
        block_tokens = self.config.block_tokens
        blocks = data.draw(st.lists(st.integers(0, 1), max_size=6), label="blocks")
        tail = data.draw(st.integers(0 if blocks else 1, block_tokens - 1), label="tail")
        return [token for token in blocks for _ in range(block_tokens)] + [1] * tail

    @rule(data=st.data(), extra=st.integers(0, 2))
    def arrive(self, data, extra):
        tokens = self.prompt(data)
        num_blocks = len(tokens) // self.config.block_tokens + 1 + extra
        if num_blocks <= self.config.device_slots:
            request = self.model.request(tokens, num_blocks)
            if not self.model.try_to_admit(request):
                self.waiting.append(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def retry(self, data):
        request = data.draw(st.sampled_from(self.waiting), label="request")
        if self.model.try_to_admit(request):
            self.waiting.remove(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up_waiting(self, data):
        self.waiting.remove(data.draw(st.sampled_from(self.waiting), label="request"))

    def computing(self):
        """Requests whose loads are there and whose prompts are not."""
        leases = [(request, request.lease.gaps(request.prompt_blocks)) for request in self.model.running]
        return [(request, gaps) for request, gaps in leases if gaps and not request.lease.num_loading]

    @precondition(lambda self: self.computing())
    @rule(data=st.data())
    def compute(self, data):
        request, gaps = data.draw(st.sampled_from(self.computing()), label="request")
        start, end = gaps[0]
        end = data.draw(st.integers(start + 1, end), label="end")
        self.model.compute(request, start, end)
        self.model.index.publish(request.lease, start, end)

    def decoding(self):
        return [
            request
            for request in self.model.running
            if request.lease.ready[: len(request.lease.ids)].all()
            and len(request.lease.ids) < request.num_blocks
        ]

    @precondition(lambda self: self.decoding())
    @rule(data=st.data(), token=st.integers(0, 1))
    def reply(self, data, token):
        request = data.draw(st.sampled_from(self.decoding()), label="request")
        short = self.config.block_tokens - len(request.tokens) % self.config.block_tokens
        self.model.reply(request, [token] * short)

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def release(self, data):
        self.model.release(data.draw(st.sampled_from(self.model.running), label="request"))

    # ---- moves

    @rule()
    def plan(self):
        self.model.plan()

    def pick(self, data, kinds):
        return data.draw(st.sampled_from(self.model_moves(kinds)), label="move")

    def model_moves(self, kinds):
        model = self.model
        return [number for number in model.completable() if isinstance(model.flights[number].move, kinds)]

    @precondition(lambda self: self.model.flights)
    @rule(data=st.data())
    def complete(self, data):
        self.model.complete(self.pick(data, (Demote, Promote, Read, Write)))

    @precondition(lambda self: self.model.flights)
    @rule(data=st.data())
    def fail(self, data):
        self.model.complete(self.pick(data, (Demote, Promote, Read, Write)), error=DIED)

    @precondition(lambda self: self.model_moves(Read))
    @rule(data=st.data())
    def lose_records(self, data):
        number = self.pick(data, Read)
        size = len(self.model.flights[number].move.ids)
        reasons = st.sampled_from([MissReason.ABSENT, MissReason.DAMAGED_CHECKSUM])
        self.model.complete(number, misses=data.draw(st.dictionaries(st.integers(0, size - 1), reasons)))

    @rule()
    def forget(self):
        self.model.forget()

    @rule(data=st.data())
    def settle(self, data):
        self.model.settle(lambda numbers: data.draw(st.sampled_from(numbers), label="move"))
        if not self.damaged:
            assert self.model.index.stats()["tiers"]["disk"]["blocks"] == len(self.model.disk)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes(self, seconds):
        self.model.now_s += seconds

    # ---- the whole cache

    @rule(to=st.sampled_from([Tier.HOST, Tier.DISK]), then_free=st.booleans())
    def sweep(self, to, then_free):
        self.model.index.sweep(to, then_free=then_free)

    @rule()
    def clear(self):
        used = self.model.running or self.model.flights
        assert self.model.index.clear() or used, "something is left although nothing is in use"
        if not used:
            assert self.model.index.stats()["blocks"] == 0

    @rule(data=st.data(), disk_blocks=st.integers(1, 8))
    def restart(self, data, disk_blocks):
        """A crash: what the writer had not done is lost; some records may be as well. The disk may shrink."""
        disk = self.model.disk
        keys = st.sampled_from(sorted(disk)) if disk else st.nothing()
        for key in data.draw(st.sets(keys, max_size=1) if disk else st.just(set()), label="lost records"):
            del disk[key]
        if self.config.disk_bytes:
            self.config = IndexConfig(
                **{name: getattr(self.config, name) for name in self.config.__slots__}
                | {"disk_bytes": disk_blocks * RECORD_BYTES}
            )
        self.waiting.clear()
        self.model = MemoryModel(self.config, disk, record_bytes=self.sizes(data), now_s=self.model.now_s)
        self.model.plan()
        self.model.forget()
        tier = self.model.index.stats()["tiers"]["disk"]
        assert tier["blocks"] == len(disk), "restored and forgotten do not add up"
        assert tier["bytes"] <= self.config.disk_bytes

    @invariant()
    def right(self):
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self):
        if not hasattr(self, "model"):
            return
        model = self.model
        model.settle()
        for request in [*model.running]:
            model.prefill(request)
            model.release(request)
        model.settle()
        for request in self.waiting:
            self.alone(request)
        model.now_s += 100.0
        model.settle()
        self.at_rest()
        assert model.index.clear()
        assert model.index.stats()["blocks"] == 0

    def alone(self, request):
        """The law of progress: with nothing else running, finitely many completions admit a request that fits."""
        for _ in range(10):
            if self.model.try_to_admit(request):
                break
            self.model.settle()
        assert request.lease is not None, f"never admitted: {request.wait}"
        self.model.settle()
        self.model.prefill(request)
        self.model.check()
        self.model.release(request)
        self.model.settle()

    def at_rest(self):
        self.model.check()
        stats = self.model.index.stats()
        assert stats["leases"] == 0
        for tier in ("device", "host"):
            assert stats["tiers"][tier]["private"] == 0
            assert stats["tiers"][tier]["in_flight"] == 0
        residency = self.model.index._holdings.residency
        assert not residency.leases.any()
        assert not residency.readers.any()


TestIndex = Machine.TestCase
TestIndex.settings = settings(stateful_step_count=60)
