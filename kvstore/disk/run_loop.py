"""The way through the records of one call, compiled: what is in memory, and the file's runs as they are read. See kvstore.disk.runs."""

from typing import Any, Final

import numpy as np
from numba import njit

from kvstore.disk.request_loop import awaited, give_back, put, word
from kvstore.disk.request_words import (
    ANSWER,
    AT,
    BEGUN,
    DONE,
    END,
    FIRST,
    IS_OPEN,
    MEMORY,
    MINCORE,
    NUM_ASKED,
    NUM_THREADS,
    OVER,
    PIECE,
    PIECE_BYTES,
    RUN_ADDRESS,
    RUN_BEGIN,
    RUN_BYTES,
    RUN_LEAST,
    UNANSWERED,
    UNPROVEN,
    UNREAD,
)
from kvstore.huffman import PROVEN
from kvstore.instructions import called
from kvstore.loops import recognise, restore

_INT: Final = 0xFFFFFFFF
_COMPILED: Final[dict[str, Any]] = {"_nrt": False}
_recognise: Final = njit(**_COMPILED)(recognise)
_restore: Final = njit(**_COMPILED)(restore)


def part(
    rows: Any,
    words: Any,
    functions: Any,
    map_begin: Any,
    begins: Any,
    sizes: Any,
    page_bytes: Any,
    bounds: Any,
    order: Any,
    pages: Any,
    runs: Any,
    reads: Any,
    call: Any,
) -> int:
    """Part records, which lie from `begins` [n] on in a file and are of `sizes` [n], in the order in which they lie, into those that are in memory
    and runs of others, that are read together: how many runs, of which the first is of what is in memory, and may have none.

    The file is mapped at `map_begin`. `order` [2, n]: its first row becomes records' numbers, as runs have them. `pages`: room for a number for
    each page of a record. `bounds`, `runs`, `reads` and `call` are those of kvstore.disk.runs.
    """
    shared, of_functions = np.int64(words.ctypes.data), np.int64(functions.ctypes.data)
    offset, run_bytes, gap_bytes, num_ahead = bounds[0], bounds[1], bounds[2], bounds[3]
    num_runs, num_present, num_absent = 1, 0, 0
    runs[0, RUN_ADDRESS], runs[0, RUN_BEGIN], runs[0, FIRST] = map_begin, 0, 0
    end = np.int64(0)
    for i in range(begins.size):
        if not _is_absent(of_functions, map_begin + begins[i], sizes[i], page_bytes, pages):
            order[0, num_present] = i
            num_present += 1
            continue
        is_next = num_absent > 0 and 0 <= begins[i] - end <= gap_bytes
        if not is_next or begins[i] + sizes[i] - runs[num_runs - 1, RUN_BEGIN] > run_bytes:
            if num_absent > 0 and num_runs - 1 <= num_ahead:
                _ask(rows, shared, of_functions, runs, reads, call, num_runs)
            num_runs += 1
            runs[num_runs - 1, RUN_BEGIN] = begins[i] - offset
            runs[num_runs - 1, RUN_ADDRESS] = 0
            runs[num_runs - 1, FIRST] = num_absent
        end = begins[i] + sizes[i]
        order[1, num_absent] = i
        num_absent += 1
        least = end - runs[num_runs - 1, RUN_BEGIN]
        runs[num_runs - 1, RUN_LEAST] = least
        runs[num_runs - 1, RUN_BYTES] = (least + page_bytes - 1) // page_bytes * page_bytes
        runs[num_runs - 1, END] = num_absent
    for i in range(num_absent):
        order[0, num_present + i] = order[1, i]
    for run in range(1, num_runs):
        runs[run, FIRST] += num_present
        runs[run, END] += num_present
    runs[0, END] = num_present
    _ask(rows, shared, of_functions, runs, reads, call, min(num_runs, 1 + num_ahead))
    return num_runs


@njit(**_COMPILED)
def _is_absent(functions: Any, address: Any, num_bytes: Any, page_bytes: Any, pages: Any) -> Any:
    """Whether any page with these bytes, which a file is mapped at, is not in memory. Not so where the system does not tell, as it does not
    for a file that the process may not write.
    """
    begin = address - address % page_bytes
    num_pages = (address + num_bytes - begin + page_bytes - 1) // page_bytes
    mincore, at = word(functions, MINCORE), np.int64(pages.ctypes.data)
    first = 1  # mostly that tells
    while True:
        if called(mincore, begin, first * page_bytes, at, 0) & _INT:
            return False
        for page in range(first):
            if pages[page] == 0:  # of each only the lowest bit means something, and no kernel sets another
                return True
        if first == num_pages:
            return False
        first = num_pages


@njit(**_COMPILED)
def _ask(rows: Any, shared: Any, functions: Any, runs: Any, reads: Any, call: Any, end: Any) -> None:
    """Have runs read, up to this one, as far as there are threads and rows for them."""
    most_bytes = word(shared, PIECE_BYTES) if word(shared, NUM_THREADS) else 0
    while call[NUM_ASKED] < end:
        run = call[NUM_ASKED]
        if runs[run, RUN_ADDRESS] == 0 and runs[run, RUN_BYTES] <= most_bytes:
            reads[run] = put(rows, shared, functions, runs[run, RUN_BYTES], runs[run, RUN_BEGIN])
            if reads[run] < 0:
                return  # there may be one later
        call[NUM_ASKED] += 1


def go_on(
    rows: Any,
    words: Any,
    functions: Any,
    runs: Any,
    num_runs: Any,
    num_ahead: Any,
    reads: Any,
    call: Any,
    records: Any,
    proof: Any,
) -> int:
    """Look at one run after the other, as long as all of each is proven: why no longer, of kvstore.disk.request_words. The one that is open is over.

    `num_ahead`: runs that are asked for while one is looked at. `records`: addresses [n], begins in the file, sizes, numbers, checksums [n, 2] and states of
    all records, in the order of the runs. `proof`: of kvstore.wanted, None where nothing can be proven so.
    """
    shared, of_functions = np.int64(words.ctypes.data), np.int64(functions.ctypes.data)
    addresses, begins, sizes, numbers, checksums, states = records
    while True:
        if call[IS_OPEN] != 0:
            give_back(rows, shared, of_functions, reads, call[AT], True)
            call[AT], call[IS_OPEN] = call[AT] + 1, 0
        run = call[AT]
        if run == num_runs:
            return OVER
        _ask(rows, shared, of_functions, runs, reads, call, min(num_runs, run + 1 + num_ahead))
        address = runs[run, RUN_ADDRESS]
        if address == 0:
            if reads[run] < 0:
                call[IS_OPEN], call[NUM_ASKED] = 1, max(call[NUM_ASKED], run + 1)
                return UNREAD
            row = np.int64(rows[reads[run]].ctypes.data)
            state = awaited(row, of_functions)
            if state == BEGUN:
                return UNANSWERED
            call[IS_OPEN] = 1
            if state != DONE:
                reads[run] = -1
                return UNREAD
            if word(row, ANSWER) < runs[run, RUN_LEAST]:
                give_back(rows, shared, of_functions, reads, run, True)
                return UNREAD
            address = word(shared, MEMORY) + word(row, PIECE) * word(shared, PIECE_BYTES)
        call[IS_OPEN] = 1
        first, end = runs[run, FIRST], runs[run, END]
        for i in range(first, end):
            addresses[i] = address + begins[i] - runs[run, RUN_BEGIN]
        if proof is None:
            is_proven = first == end
        else:
            is_proven = _is_proven(addresses, sizes, numbers, checksums, states, first, end, proof)
        if not is_proven:
            return UNPROVEN


@njit(**_COMPILED)
def _is_proven(
    addresses: Any, sizes: Any, numbers: Any, checksums: Any, states: Any, first: Any, end: Any, proof: Any
) -> Any:
    """Whether all of these records are what is looked for, and are decoded to where that is wanted."""
    heads, header_bytes, targets, num_items, front, table, plane, subtrahend, group_rows, first_bit, low = (
        proof
    )
    at, of_bytes, of = addresses[first:end], sizes[first:end], numbers[first:end]
    both, said = checksums[first:end], states[first:end]
    _recognise(at, of_bytes, of, heads, both, said)
    _restore(
        at,
        of_bytes,
        of,
        header_bytes,
        targets,
        both,
        said,
        num_items,
        front,
        table,
        plane,
        subtrahend,
        group_rows,
        first_bit,
        low,
    )
    num_proven = 0
    for state in said:
        num_proven += state == PROVEN
    return num_proven == said.size
