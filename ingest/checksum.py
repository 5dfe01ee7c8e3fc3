"""Checksums of input files, by blocks, so that several tasks can each hash their share of one file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import xxhash

BLOCK_BYTES: Final = 32 * 1024**2


class BlockHash:
    """Feeds on consecutive bytes and keeps one digest for each block of `BLOCK_BYTES`."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._block = xxhash.xxh3_128()
        self._room = BLOCK_BYTES
        self.size = 0

    def update(self, data: bytes) -> None:
        """Take in the next bytes."""
        self.size += len(data)
        view = memoryview(data)
        while len(view) >= self._room:
            self._block.update(view[: self._room])
            view = view[self._room :]
            self._done.append(self._block.hexdigest())
            self._block, self._room = xxhash.xxh3_128(), BLOCK_BYTES
        if len(view):
            self._block.update(view)
            self._room -= len(view)

    def blocks(self) -> list[str]:
        """Return the digests of the blocks so far, the last one perhaps short."""
        return [*self._done, self._block.hexdigest()] if self._room < BLOCK_BYTES else list(self._done)


def join_blocks(blocks: Iterable[str]) -> str:
    """Return the checksum of a file from its blocks' digests.

    >>> join_blocks(["ab", "cd"]) == join_blocks(["ab"] + ["cd"])
    True
    """
    return xxhash.xxh3_128_hexdigest("".join(blocks).encode())
