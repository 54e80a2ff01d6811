"""Who may see blocks again although nobody touched them: told together."""

from collections.abc import Sequence

from tiering.fair_order import FairOrder
from tiering.policies.view import SeenBy, View
from tiering.residency import Ids

_Orders = tuple[FairOrder | View, ...]


class Audience:
    """Orders of blocks that may go. Views by a rule are set back in one pass; a policy that is a plug-in is asked anew each time."""

    def __init__(self, orders: Sequence[FairOrder | View] = ()) -> None:
        fair = [order for order in orders if isinstance(order, FairOrder)]
        views = [order for order in orders if isinstance(order, View)]
        views += [order.view for order in fair if order.view is not None]
        self._seen_by, self._fair = SeenBy(views) if views else None, fair

    def show(self, ids: Ids) -> None:
        """These may go now, as far as each lets them: see `View.rewind`."""
        if self._seen_by is not None and len(ids):
            self._seen_by.rewind(ids)
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
        device_victims: FairOrder,
        host_victims: FairOrder,
        host_clean: FairOrder,
        host_stored: View,
        host_dirty: FairOrder,
        disk_victims: FairOrder,
        has_host: bool,
        has_disk: bool,
    ) -> None:
        """A tier that is absent now never comes, and nobody looks for its blocks."""
        clean, victims = (host_clean,) * has_host, (host_victims,) * has_host
        host: _Orders = (*clean, *victims, *(host_stored, host_dirty) * has_disk)
        device, disk = (device_victims,), (disk_victims,) * has_disk
        self.begun = _told(clean, (), ())
        self.whole = _told((*device, *disk), host, (*clean, *(host_stored,) * has_disk, *disk))
        self.gone = _told(victims, (), (*victims, *(host_dirty,) * has_disk))
        self.unread = _told(device, host, disk)
        self.orders: _Orders = (*device, *host, *disk)
        """All that are looked at."""
        self.on_device, self.all = Audience(device), Audience(self.orders)


def _told(*by_tier: _Orders) -> tuple[Audience, ...]:
    return tuple(map(Audience, by_tier))
