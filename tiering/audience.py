"""Who may see blocks again although nobody touched them: told together."""

from collections.abc import Sequence
from typing import Final, Self

from tiering.fair_order import FairOrder
from tiering.policies.view import SeenBy, View
from tiering.residency import Ids

_Orders = tuple[FairOrder | View, ...]
_ByTier = tuple[_Orders, _Orders, _Orders]
_NOBODY: Final[_ByTier] = ((), (), ())


class Audience(SeenBy):
    """Orders of blocks that may go. Views by a rule are set back in one pass; a policy that is a plug-in is asked anew each time."""

    def __init__(self, orders: Sequence[FairOrder | View] = ()) -> None:
        self._fair = [order for order in orders if isinstance(order, FairOrder)]
        views = [order for order in orders if isinstance(order, View)]
        super().__init__([*views, *(order.view for order in self._fair if order.view is not None)])

    def show(self, ids: Ids) -> None:
        """These may go now, as far as each lets them: see `View.rewind`."""
        if len(ids):
            self.rewind(ids)
            self.show_parts(ids)

    def show_parts(self, ids: Ids) -> None:
        """The same to views of parts only: the loop that has changed copies has set back the others."""
        for order in self._fair:
            if order.parts:
                order.rewind_parts(ids)


class Audiences:
    """Of all orders, those that are told when copies are begun, are whole, go or are no longer read: by tier, a number, as an enum takes
    long to be hashed.
    """

    def __init__(
        self,
        *,
        begun: _ByTier = _NOBODY,
        whole: _ByTier = _NOBODY,
        gone: _ByTier = _NOBODY,
        unread: _ByTier = _NOBODY,
    ) -> None:
        self.begun, self.whole, self.gone, self.unread = (
            tuple(map(Audience, each)) for each in (begun, whole, gone, unread)
        )
        self.orders: _Orders = tuple(order for orders in unread for order in orders)
        """All that are looked at."""
        self.on_device, self.all = self.unread[0], Audience(self.orders)

    @classmethod
    def of(
        cls,
        *,
        device_victims: FairOrder,
        host_victims: FairOrder,
        host_clean: FairOrder,
        host_stored: View,
        host_dirty: FairOrder,
        disk_victims: FairOrder,
        has_host: bool,
        has_disk: bool,
    ) -> Self:
        """A tier that is absent now never comes, and nobody looks for its blocks."""
        clean, victims = (host_clean,) * has_host, (host_victims,) * has_host
        host: _Orders = (*clean, *victims, *(host_stored, host_dirty) * has_disk)
        device, disk = (device_victims,), (disk_victims,) * has_disk
        return cls(
            begun=(clean, (), ()),
            whole=((*device, *disk), host, (*clean, *(host_stored,) * has_disk, *disk)),
            gone=(victims, (), (*victims, *(host_dirty,) * has_disk)),
            unread=(device, host, disk),
        )
