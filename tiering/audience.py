"""Who may see blocks again although nobody touched them: told together."""

from collections.abc import Sequence

from tiering.fair_order import FairOrder
from tiering.policies.view import SeenBy, View
from tiering.residency import Ids


class Audience:
    """Orders of blocks that may go. Views by a rule are set back in one pass; a policy that is a plug-in is asked anew each time."""

    def __init__(self, orders: Sequence[FairOrder | View] = ()) -> None:
        fair = [order for order in orders if isinstance(order, FairOrder)]
        views = [order for order in orders if isinstance(order, View)]
        views += [order.view for order in fair if order.view is not None]
        self._seen_by, self._fair = SeenBy(views), fair

    def show(self, ids: Ids) -> None:
        """These may go now, as far as each lets them: see `View.rewind`."""
        if not len(ids):
            return
        self._seen_by.rewind(ids)
        for order in self._fair:
            if order.has_parts:
                order.rewind_parts(ids)
