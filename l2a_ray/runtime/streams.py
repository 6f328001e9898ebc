"""Reading from Ray Data so that nothing of it is left: no threads, no tasks, when the reader ends, however that ends.

An execution of Ray Data lives in threads of the reading process, which talk to Ray. A thread that still does when Ray
is shut down ends the whole process with status 1 and no word ("The core worker has already been shutdown"). What is
dropped before its end is closed by Python's garbage collector, in any thread; in one of the execution's own that fails
("cannot join current thread"). So whoever reads does it in :func:`reading`, and a session ends by :func:`close_all`.
"""

import logging
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import ray

logger = logging.getLogger(__name__)
T = TypeVar("T")
PREFETCHER = "Prefetcher"
THREADS = ("StreamingExecutor-", "ray-data-metadata-prefetch", "iter_threaded", PREFETCHER)
"""How Ray Data's names of its threads in a reading process begin (Ray 2.60: streaming_executor, metadata_fetcher and
block_batching of `ray.data._internal`)."""
PATIENCE = 60
"""Seconds that threads have to end: they do when what they ask Ray for, in the moment of closing, has come."""
# Ray Data's own iterators. That they are reachable from here keeps the garbage collector from closing them by itself.
_open: set[Generator[Any, None, None]] = set()
_closing = threading.RLock()


@contextmanager
def reading(rows: Iterable[T]) -> Iterator[Iterator[T]]:
    """Yield what a data set's ``iter_rows`` or ``iter_batches`` yields; at the end, its execution has ended.

    It has ended, too, when the reader raises or stops early. If the reader is garbage that is collected in a thread of
    Ray Data, it ends soon after. Where several executions are read at once, the threads of all are waited for when the
    last one is closed.
    """
    source = cast(Generator[T, None, None], iter(rows))
    _open.add(source)
    try:
        yield source
    finally:
        _close(source)


def close_all() -> None:
    """End all executions of this process; to be called before Ray is shut down."""
    for source in tuple(_open):
        _close(source)
    with _closing:
        _end_threads()


def _close(source: Generator[Any, None, None]) -> None:
    if threading.current_thread() in threads():
        threading.Thread(target=_close, args=(source,)).start()  # a thread cannot wait for its own end
        return
    with _closing:
        if source not in _open:
            return
        try:
            if ray.is_initialized():
                source.close()
        except Exception:  # of a cluster that is gone, say: what the reader ends with matters more
            logger.warning("an execution of Ray Data did not end well", exc_info=True)
        finally:
            _open.discard(source)
        if not _open:
            _end_threads()


def _end_threads() -> None:
    """Wait until the threads of executions that are closed have ended."""
    deadline = time.monotonic() + PATIENCE
    for thread in threads():
        if thread.name == PREFETCHER and (target := getattr(thread, "_target", None)) is not None:
            # Ray Data stops it only where all was read. It sleeps until told something, and nothing else refers to it.
            cast(Any, target).__self__.stop()
        thread.join(max(0, deadline - time.monotonic()))
    if left := threads():
        logger.warning("threads of Ray Data have not ended: %s", ", ".join(thread.name for thread in left))


def threads() -> list[threading.Thread]:
    """Return the threads of Ray Data's executions in this process."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]
