"""Laws of threads that read and write the same block, and of a store that is closed."""

# ruff: noqa: ARG001
# (every law takes both arguments, so that they can be called alike)

import threading
from collections.abc import Callable

from kvstore.errors import StoreClosed
from kvstore.metas import metas_of
from kvstore.raw import RawRecords
from kvstore.store import OWNER_BYTES, Store
from kvstore.testing import chain, fill, kv_like, read


def readers_never_see_a_mixture(store: Store, raw: RawRecords) -> None:
    """While a block is replaced and deleted over and over, a reader sees one version, the other, or none."""
    refs, versions = chain(store, 1), kv_like(store, 2)
    allowed = {version.tobytes() for version in versions}
    ended = threading.Event()
    errors: list[BaseException] = []

    def keep_reading() -> None:
        try:
            while not ended.is_set():
                outcomes, out = read(store, refs)
                assert not outcomes[0].damaged, f"a half-written record: {outcomes[0]}"
                assert not outcomes[0].hit or out[0].tobytes() in allowed, "a mixture was served"
        except BaseException as error:  # noqa: BLE001 - raised again where the law is called
            errors.append(error)

    readers = [threading.Thread(target=keep_reading) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(30):
        store.put_many(refs, [versions[turn % 2]])
        if turn % 5 == 4:
            store.delete_many([refs[0].key])
    ended.set()
    for reader in readers:
        reader.join()
    if errors:
        raise errors[0]
    store.check()


def a_closed_store_says_so(store: Store, raw: RawRecords) -> None:
    """Closing twice is safe; everything after it raises StoreClosed, scans that were under way included."""
    refs, blocks = fill(store, 1)
    store.close()
    store.close()
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.put_many(refs, blocks),
        lambda: store.get_many(refs, blocks),
        lambda: store.delete_many([refs[0].key]),
        lambda: store.touch_many([refs[0].key], [1]),
        lambda: store.erase(bytes([1]) * OWNER_BYTES),
        lambda: list(metas_of(store)),
        store.sync,
        store.stats,
    )
    for call in calls:
        try:
            call()
        except StoreClosed:
            continue
        raise AssertionError("a closed store answered")
