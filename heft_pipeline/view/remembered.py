"""What was found out a moment ago, so that many readers cost no more than one."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_LEAST_SECONDS = 1.0
#: What takes long to find out is kept for so many times as long.
_TIMES = 5.0
T = TypeVar("T")


class Remembered:
    """Answers that are found out again when they are old.

    Args:
        most: So many are kept.
    """

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Answer] = OrderedDict()

    def get(self, key: Hashable, find: Callable[[], T], least: float = _LEAST_SECONDS) -> T:
        """An answer; several who ask at once wait for one that finds it out.

        Args:
            key: What is asked.
            find: Finds the answer out.
            least: For how many seconds it is kept at least; infinite where the key says all.

        Returns:
            What ``find`` returned, now or lately. What it raises is raised, and not kept.
        """
        with self._lock:
            answer = self._kept.setdefault(key, _Answer())
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        with answer.lock:
            if time.monotonic() >= answer.until:
                begun = time.monotonic()
                answer.value = find()
                took = time.monotonic() - begun
                answer.until = time.monotonic() + max(least, _TIMES * took)
            found: T = answer.value
            return found


class _Answer:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.until = 0.0
        self.value: Any = None
