"""Does work in threads or processes ahead of its use, in order, and never far ahead."""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextlib.contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Starts threads; when the block ends, what they have not begun is dropped."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: Executor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    ahead: int,
) -> Iterator[tuple[_Item, Future[_Result]]]:
    """Applies a function to items in a pool, in the items' order.

    Args:
      pool: threads, or processes.
      function: function of one item.
      items: items, which are taken one by one by the calling thread.
      ahead: how many items are taken before the first of their results is used. So
        many results are in memory at most, and one more.

    Yields:
      Each item and its finished or unfinished result.
    """
    waiting = collections.deque[tuple[_Item, Future[_Result]]]()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
