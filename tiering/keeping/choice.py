"""Which classes of blocks to keep in a tier: fewer of them for longer, where that gives more hits."""

import numpy as np

from tiering.keeping.lifetimes import AGES, Curves, Floats


def chosen(curves: Curves, capacity_blocks: int, *, until: int, gain: float) -> Floats | None:
    """The share of each class's blocks to keep, or None: keep all.

    A tier that keeps a class for `a` accesses holds share * held(a) of its blocks and gets share * reused(a) hits for each
    access. At each age the classes with the most hits for their room are taken, the last one in part, until the tier is
    full; blocks that are not taken are there for the youngest age all the same. The age that gives the most hits is
    compared with the one at which all classes together fill the tier, which is what the last use alone would give: None
    unless there are more by the share `gain`, or if all fits. Only ages below `until`, in accesses, are looked at.
    """
    num_ages = AGES.searchsorted(until, side="right").item()
    if not num_ages:
        return None
    hits = curves.share[:, None] * curves.reused[:, :num_ages]
    room = curves.share[:, None] * curves.held[:, :num_ages]
    if room[:, -1].sum() <= capacity_blocks:
        return None
    of_all = np.interp(capacity_blocks, room.sum(axis=0), hits.sum(axis=0)).item()
    base_hits, base_room = hits[:, 0].sum(), room[:, 0].sum()
    hits, room = hits - hits[:, :1], room - room[:, :1]
    order = (-hits / np.maximum(room, 1e-12)).argsort(axis=0, kind="stable")
    sorted_room = np.take_along_axis(room, order, axis=0)
    left = np.maximum(0.0, capacity_blocks - base_room) - (sorted_room.cumsum(axis=0) - sorted_room)
    parts = np.clip(left / np.maximum(sorted_room, 1e-12), 0.0, 1.0)
    total = base_hits + (parts * np.take_along_axis(hits, order, axis=0)).sum(axis=0)
    total[(room.sum(axis=0) + base_room) <= capacity_blocks] = (
        0.0  # there the tier is not full, so no choice was made
    )
    best = total.argmax().item()
    if total[best] <= of_all * (1 + gain):
        return None
    shares = np.empty(len(hits))
    shares[order[:, best]] = parts[:, best]
    return shares
