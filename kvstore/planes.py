"""The bits of elements into planes, and planes into elements, to be compiled: see kvstore.kernels, and for what planes are kvstore.codec."""

from typing import Any

import numpy as np


def split_words(
    words: Any, numbers: Any, group_rows: int, first_bit: int, coded: Any, second: Any, low: Any
) -> None:
    """Part `words` [n] into `coded` [n], `second` [n] and, of 32 bits only, `low` [n], which is None otherwise.

    Rows have as many elements as `numbers` [groups, channels] has channels, the last one maybe fewer; a group has `group_rows` rows.
    """
    word = words.dtype.type
    bits = 16 if low is None else 32
    channels = numbers.shape[1]
    for row in range((words.size + channels - 1) // channels):
        begin = row * channels
        end = min(begin + channels, words.size)
        number, of_row = numbers[row // group_rows], words[begin:end]
        to_coded, to_second = coded[begin:end], second[begin:end]
        to_low = None if low is None else low[begin:end]
        if first_bit == bits - 8:
            for i in range(end - begin):
                left = word(of_row[i] - number[i])
                to_coded[i] = np.uint8(left >> (bits - 8))
                to_second[i] = np.uint8(left >> (bits - 16))
                if to_low is not None:
                    to_low[i] = np.uint16(left)
        else:
            for i in range(end - begin):
                left = word(of_row[i] - number[i])
                to_coded[i] = np.uint8(left >> (bits - 9))
                to_second[i] = np.uint8((left >> (bits - 16)) & 0x7F | (left >> (bits - 8)) & 0x80)
                if to_low is not None:
                    to_low[i] = np.uint16(left)


def join_words(
    words: Any, numbers: Any, group_rows: int, first_bit: int, coded: Any, second: Any, low: Any
) -> None:
    """Undo `split_words`: fill `words`."""
    word = words.dtype.type
    bits = 16 if low is None else 32
    channels = numbers.shape[1]
    for row in range((words.size + channels - 1) // channels):
        begin = row * channels
        end = min(begin + channels, words.size)
        number, of_row = numbers[row // group_rows], words[begin:end]
        from_coded, from_second = coded[begin:end], second[begin:end]
        from_low = None if low is None else low[begin:end]
        if first_bit == bits - 8:
            for i in range(end - begin):
                left = word(word(from_coded[i]) << (bits - 8) | word(from_second[i]) << (bits - 16))
                if from_low is not None:
                    left |= word(from_low[i])
                of_row[i] = word(left + number[i])
        else:
            for i in range(end - begin):
                upper = word(from_second[i])
                left = word(
                    word(from_coded[i]) << (bits - 9)
                    | (upper & 0x7F) << (bits - 16)
                    | (upper & 0x80) << (bits - 8)
                )
                if from_low is not None:
                    left |= word(from_low[i])
                of_row[i] = word(left + number[i])
