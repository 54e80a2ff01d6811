"""A mover on the virtual device, used as freely as its contract allows: every look at a slot must find the right bytes.

There is no core here that frees a slot late: a slot has its next owner at once, and that owner writes at once.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tiering.transfer.mover import WHOLE_SLOT, Arriving, Mover
from tiering.transfer.virtual import VirtualDevice, VirtualMemory

LAYER_BYTES = 6
BLOCK_BYTES = 3 * LAYER_BYTES
NUM_DEVICE, NUM_HOST = 5, 5
LAYER_GROUPS = [
    (WHOLE_SLOT,),
    (slice(0, LAYER_BYTES), slice(LAYER_BYTES, BLOCK_BYTES)),
    tuple(slice(start, start + LAYER_BYTES) for start in range(0, BLOCK_BYTES, LAYER_BYTES)),
]


def layers_before(groups, end):
    """The layer groups of a step that breaks off at byte `end` of each slot, the last of them cut off there."""
    for group in groups:
        start, stop, _ = group.indices(end)
        if start < stop:
            yield slice(start, stop)


def content_of(name):
    """Bytes that no other block of a walk has in any place, and none of them poison."""
    return ((name * 29 + np.arange(BLOCK_BYTES)) % 211).astype(np.uint8)


@dataclass(frozen=True)
class Block:
    """What a step that is enqueued now will find in a device slot, unless `transfer`, which brings it, fails."""

    name: int
    transfer: int | None = None


@dataclass(frozen=True)
class Transfer:
    up: bool
    device_slots: tuple[int, ...]
    host_slots: tuple[int, ...]
    names: tuple[int, ...]


class MoverWalk:
    def __init__(self, choose, groups=None, fail_one_in=12) -> None:
        self.choose = choose
        self.groups = groups or choose(LAYER_GROUPS)
        self.fail_one_in = fail_one_in
        self.device = VirtualDevice(choose, fails=self.fails)
        self.pool = VirtualMemory(NUM_DEVICE, BLOCK_BYTES, page_locked=False)
        self.slab = VirtualMemory(NUM_HOST, BLOCK_BYTES, page_locked=True)
        self.woken = False
        self.device.launch(self.clear_pool)
        self.mover = Mover(self.under_the_mover(), self.pool, self.slab, self.wake, self.groups)
        self.last_name = self.last_number = 0
        self.blocks: dict[int, Block] = {}
        self.host: dict[int, int] = {}
        self.transfers: dict[int, Transfer] = {}
        self.failed: set[int] = set()
        self.arrived: set[int] = set()
        """Transfers of which the first layers are known to be there, and no more than that."""
        self.broken: list[set[int]] = []
        """The slots of each step that has broken off and whose kernels may still run."""
        self.counts = Counter()
        self.actions = [
            *[self.step] * 6,
            *[self.demote] * 3,
            *[self.promote] * 3,
            *[self.poll] * 3,
            *[self.run] * 4,
            self.sleep,
            self.finish,
            self.fill_host,
            self.free_host,
        ]

    def under_the_mover(self):
        return self.device

    def wake(self):
        self.woken = True

    def clear_pool(self):
        """What an engine has enqueued before it made the mover: copies must wait for that too."""
        for slot in range(NUM_DEVICE):
            self.pool.view(slot)[:] = 0
            yield

    def fails(self, destination, slots):
        if not self.choose([*[False] * (self.fail_one_in - 1), True]):
            return False
        side = "device_slots" if destination is self.pool else "host_slots"
        found = [n for n, transfer in self.transfers.items() if getattr(transfer, side) == tuple(slots)]
        assert len(found) == 1, "the places of a copy are its own until it has ended"
        self.failed.update(found)
        return True

    def act(self):
        self.choose(self.actions)()
        assert self.mover.in_flight == len(self.transfers), (
            "each transfer is in flight until `poll` reports it"
        )

    def some(self, values, most):
        """Up to `most` of these, in any order."""
        values, taken = list(values), []
        for _ in range(min(len(values), self.choose(range(1, most + 1)))):
            taken.append(self.choose(values))
            values.remove(taken[-1])
        return taken

    def new_name(self):
        self.last_name += 1
        return self.last_name

    # ---- steps

    def step(self):
        """The model reads some slots and overwrites others, whoever had these, layer group by layer group.

        Now and then it breaks off: some layers are enqueued, the rest never will be.
        """
        reads = self.some(self.blocks, 3) if self.choose([True, True, False]) else []
        arriving = self._busy("device_slots", up_only=True)
        writes = self.some(set(range(NUM_DEVICE)) - arriving - set(reads), 2)
        found = {slot: self.blocks[slot] for slot in reads}
        written = {slot: self.new_name() for slot in writes}
        end = self.choose([*[BLOCK_BYTES] * 14, LAYER_BYTES, 2 * LAYER_BYTES])
        for number, group in enumerate(layers_before(self.groups, end)):
            if number == 0:
                self.mover.before_compute(reads, writes)
            else:
                self.mover.before_compute(reads, writes, number)
            self.device.launch(lambda group=group: self.kernel(found, written, group))
            self.run_a_little()
        if end < BLOCK_BYTES:
            self.break_off({*reads, *writes}, writes)
        else:
            self.mover.after_compute()
            self.blocks.update((slot, Block(name)) for slot, name in written.items())

    def break_off(self, slots, writes):
        """Nobody will read what the step has half written, and its slots are free at once."""
        self.counts["broken off"] += 1
        self.broken.append(slots)
        self.device.launch(lambda: self.broken.remove(slots))
        self.mover.after_compute()
        for slot in writes:
            self.blocks.pop(slot, None)

    def run_a_little(self):
        """The device does not wait until the host has enqueued everything."""
        if len(self.groups) > 1 and self.choose([True, False]):
            self.device.run(self.choose([1, 3, 9]))

    def kernel(self, found, written, group):
        for slot, block in found.items():
            self.look(slot, block, group)
            yield
        for slot in written:
            self.pool.view(slot)[group] = 0  # not what was there, and not yet what will be
        yield
        for slot, name in written.items():
            self.pool.view(slot)[group] = content_of(name)[group]
            yield

    def look(self, slot, block, group=WHOLE_SLOT):
        self.counts["looks"] += 1
        if block.transfer not in self.failed:
            seen, right = self.pool.view(slot)[group].tolist(), content_of(block.name)[group].tolist()
            assert seen == right, f"a step reads {seen} in device slot {slot}, not {right}"

    # ---- copies

    def _depart(self, *, up, device_slots, host_slots, names):
        self.last_number += 1
        self.transfers[self.last_number] = Transfer(up, tuple(device_slots), tuple(host_slots), tuple(names))
        return self.last_number

    def _busy(self, side, *, up_only=False):
        """Places of copies that have not ended."""
        found = [transfer for transfer in self.transfers.values() if transfer.up or not up_only]
        return {slot for transfer in found for slot in getattr(transfer, side)}

    def demote(self):
        ready = self.blocks.keys() - self._busy("device_slots", up_only=True)
        free = set(range(NUM_HOST)) - self.host.keys() - self._busy("host_slots")
        slots, hosts = self.some(ready, 2), self.some(free, 2)
        if slots and hosts:
            slots, hosts = slots[: len(hosts)], hosts[: len(slots)]
            names = [self.blocks[slot].name for slot in slots]
            number = self._depart(up=False, device_slots=slots, host_slots=hosts, names=names)
            self.mover.submit_demote(number, slots, hosts)

    def promote(self):
        hosts = self.some(self.host, 2)
        slots = self.some(set(range(NUM_DEVICE)) - self._busy("device_slots"), 2)
        if hosts and slots:
            slots, hosts = slots[: len(hosts)], hosts[: len(slots)]
            names = [self.host[slot] for slot in hosts]
            number = self._depart(up=True, device_slots=slots, host_slots=hosts, names=names)
            self.counts["behind a broken step"] += any(not taken.isdisjoint(slots) for taken in self.broken)
            self.mover.submit_promote(number, hosts, slots)
            self.blocks.update((slot, Block(name, number)) for slot, name in zip(slots, names, strict=True))

    def poll(self):
        self.woken = False
        for ended in self.mover.poll():
            if isinstance(ended, Arriving):
                self.first_layers_are_there(ended.number)
                continue
            self.arrived.discard(ended.number)
            transfer = self.transfers.pop(ended.number)
            assert (ended.error is not None) == (ended.number in self.failed), f"{ended} is not true"
            if transfer.up:
                self._arrived(ended, transfer)
            elif ended.error is None:
                self.host.update(zip(transfer.host_slots, transfer.names, strict=True))
                self.look_at_host(transfer.host_slots)
            else:
                self._scribble(transfer.host_slots)

    def first_layers_are_there(self, number):
        assert number not in self.arrived, "it was told before"
        self.arrived.add(number)
        self.counts["arriving"] += 1
        transfer, group = self.transfers[number], self.groups[0]
        assert transfer.up and len(self.groups) > 1
        for slot, name in zip(transfer.device_slots, transfer.names, strict=True):
            assert self.pool.view(slot)[group].tolist() == content_of(name)[group].tolist()

    def finish(self):
        """A step that has begun early must know whether all of what it reads has arrived."""
        slots = self.some(self._busy("device_slots", up_only=True), 2)
        coming = [
            n for n, transfer in self.transfers.items() if transfer.up and {*transfer.device_slots} & {*slots}
        ]
        self.mover.finish(slots)
        self.poll()
        assert not self.transfers.keys() & set(coming), "it is still under way"

    def _arrived(self, ended, transfer):
        for slot, name in zip(transfer.device_slots, transfer.names, strict=True):
            if ended.error is not None:
                del self.blocks[slot]
            else:
                self.blocks[slot] = Block(name)

    # ---- what the host does with its memory

    def look_at_host(self, slots):
        for slot in slots:
            self.counts["looks"] += 1
            seen, right = self.slab.view(slot).tolist(), content_of(self.host[slot]).tolist()
            assert seen == right, f"the host reads {seen} in its slot {slot}, not {right}"

    def _scribble(self, slots):
        for slot in slots:
            self.slab.view(slot)[:] = 1

    def fill_host(self):
        """A read from disk comes into free host slots."""
        free = set(range(NUM_HOST)) - self.host.keys() - self._busy("host_slots")
        for slot in self.some(free, 2):
            self.host[slot] = self.new_name()
            self.slab.view(slot)[:] = content_of(self.host[slot])

    def free_host(self):
        """What no copy reads any more is given up, and overwritten at once."""
        for slot in self.some(self.host.keys() - self._busy("host_slots"), 2):
            self.look_at_host([slot])
            del self.host[slot]
            self._scribble([slot])

    # ---- time

    def run(self):
        """The device goes on, or only a part of it while the rest hangs behind."""
        streams = self.device.streams
        self.device.run(
            self.choose([1, 2, 5, 10, 40]), only=self.choose([None, *([each] for each in streams)])
        )

    def sleep(self):
        """The loop has nothing to do until a copy has ended."""
        self.poll()
        if self.mover.in_flight:
            while not self.woken:
                assert not self.first_layers_untold(), "first layers are there, and the loop sleeps on"
                assert self.device.run(1), "a copy is in flight, the loop sleeps, and nothing will wake it"
            self.poll()

    def first_layers_untold(self):
        """Whether there is something to be told that has been so for a while: events that are over, and sound."""
        untold = [flight.events[0] for flight in self.mover._ups if flight.number not in self.arrived]
        return len(self.groups) > 1 and any(event.done and event.error is None for event in untold)

    # ---- the end

    def end(self):
        """Everything ends while something is in flight, and is right."""
        self.mover.close()
        self.mover.close()
        self.device.close()  # steps may go on behind what the mover knows of
        self.poll()
        assert not self.transfers, f"closed, but {self.transfers} have not ended"
        assert self.mover.in_flight == 0
        for slot, block in self.blocks.items():
            self.look(slot, block)
        self.look_at_host(self.host)
        return self.counts + Counter(transfers=self.last_number, failed=len(self.failed))
