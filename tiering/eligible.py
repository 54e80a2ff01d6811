"""Asking a rule about blocks: one, many, or while walking in eviction order."""

from typing import Any

import numpy as np

from tiering.kernels import kernels
from tiering.residency import Ids, Mask, Residency
from tiering.slot_table import SlotTable


class Eligible:
    """One of tiering.rules over what a residency says of a block now. Changes nothing."""

    def __init__(self, rule: int, residency: Residency, host_slots: SlotTable) -> None:
        self.number = rule
        """In tiering.rules."""
        self.residency, self.host_slots = residency, host_slots
        self._are_eligible, self._is_eligible = kernels().are_eligible, kernels().is_eligible

    def __call__(self, ids: Ids) -> Mask:
        """Of which blocks it holds."""
        mask: Mask = np.empty(len(ids), dtype=np.bool_)
        self._are_eligible(*self.arguments(), ids, mask)
        return mask

    def of(self, block: int) -> bool:
        """Whether it holds of one."""
        rule, host_counts, ties = self.arguments()
        return bool(self._is_eligible(rule, host_counts, block, *ties))

    def arguments(self) -> tuple[Any, ...]:
        """What the loops are given that ask it: the rule, what is counted of host memory, and columns as they are now."""
        return self.number, self.host_slots.counts, self.residency.ties
