"""The laws that every store keeps, for the tests of stores here and elsewhere.

A law is a function `law(store, raw)` that raises AssertionError where the store breaks it. Give each one a
fresh, empty store, with a capacity of some 20 to 200 blocks that do not compress, and its `RawRecords`:

    @pytest.mark.parametrize("law", LAWS)
    def test_law(law):
        with MyStore(...) as store:
            law(store, store.raw())
"""

from collections.abc import Callable
from typing import Final, TypeAlias

from kvstore.raw import RawRecords
from kvstore.store import Store
from kvstore.testing import damage, reads_and_writes, threads

Law: TypeAlias = Callable[[Store, RawRecords], None]

LAWS: Final[tuple[Law, ...]] = (
    reads_and_writes.what_was_put_is_read,
    reads_and_writes.extreme_floats_are_kept,
    reads_and_writes.absent_is_a_miss,
    reads_and_writes.the_last_put_wins,
    reads_and_writes.any_contiguous_buffer_will_do,
    reads_and_writes.nothing_is_fine,
    reads_and_writes.what_is_deleted_is_gone,
    reads_and_writes.wrong_sizes_are_refused,
    reads_and_writes.scan_tells_what_is_there,
    reads_and_writes.a_touch_changes_the_time_and_nothing_else,
    reads_and_writes.wrong_times_are_refused,
    reads_and_writes.what_is_erased_is_gone,
    reads_and_writes.stats_add_up,
    reads_and_writes.a_full_store_refuses_whole_batches,
    damage.damage_is_a_miss,
    damage.damage_is_counted_by_reason,
    damage.short_records_are_a_miss,
    damage.misplaced_records_are_a_miss,
    damage.all_of_the_reference_counts,
    threads.readers_never_see_a_mixture,
    threads.a_closed_store_says_so,
)
