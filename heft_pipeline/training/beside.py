"""Writing to disk beside training, where it takes long."""

import threading
import time
from collections.abc import Callable, Mapping

import torch

#: Writing is done beside training if it took longer than this, in seconds, the last time.
_LONG_SECONDS = 1.0


class Beside:
    """Does one piece of writing at a time: at once, or in a thread if the last one took long."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._seconds = 0.0

    def run(
        self,
        write: Callable[[Mapping[str, torch.Tensor]], None],
        tensors: Mapping[str, torch.Tensor],
    ) -> None:
        """Write tensors as they are now.

        Args:
            write: Writes them.
            tensors: Tensors by name, which may change as soon as this returns.

        Raises:
            OSError: These, or those of the call before, could not be written.
        """
        self.wait()
        if self._seconds <= _LONG_SECONDS:
            started = time.monotonic()
            write(tensors)
            self._seconds = time.monotonic() - started
            return
        kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._thread = threading.Thread(target=self._in_thread, args=(write, kept))
        self._thread.start()

    def _in_thread(
        self,
        write: Callable[[Mapping[str, torch.Tensor]], None],
        tensors: Mapping[str, torch.Tensor],
    ) -> None:
        started = time.monotonic()
        try:
            write(tensors)
        except BaseException as error:
            self._error = error
        self._seconds = time.monotonic() - started

    def wait(self) -> None:
        """Wait for the thread, if there is one.

        Raises:
            OSError: It could not write.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
