"""A bounded queue between two stages in which the newest wins. The standard library alone."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """A queue of at most ``capacity`` things. Where it is full, the oldest is dropped, and counted in ``dropped``.

    So a stage that is slow delays nobody before it, and what it takes next is never older than ``capacity`` things.
    """

    def __init__(self, capacity: int = 1) -> None:
        self._held: deque[T] = deque()
        self._capacity = capacity
        self._changed = threading.Condition()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._held)

    def put(self, thing: T) -> None:
        """Add a thing; never waits."""
        with self._changed:
            if len(self._held) == self._capacity:
                self._held.popleft()
                self.dropped += 1
            self._held.append(thing)
            self._changed.notify()

    def get(self, timeout: float) -> T | None:
        """Take the oldest thing that is left, or None where none comes within ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._held), timeout):
                return None
            return self._held.popleft()
