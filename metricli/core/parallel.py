"""Work on the CPU by threads that each compute alone: a block stays in the cache of its core.

Splitting every small operation over all threads makes them wait for each other more than they compute, and a
matrix product by one thread pool beside element-wise work by another makes two pools fight for the cores.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

__all__ = ["in_parallel", "one_thread_each"]

Task = TypeVar("Task")


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Matrix products of numpy use the calling thread alone; torch's setting is put back at the end."""
    before = torch.get_num_threads()
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def in_parallel(
    tasks: Iterable[Task], workers: list[Callable[[Task], int]], on_done: Callable[[int], None]
) -> None:
    """Give each task to a worker that is free; `on_done` gets what it returned, in the calling thread.

    A single worker works in the calling thread; several have a thread each.
    The first exception, Ctrl-C included, ends the work once the tasks under way are done.
    """
    if len(workers) == 1:
        with one_thread_each():
            for task in tasks:
                on_done(workers[0](task))
        return
    waiting, lock, stop = iter(tasks), threading.Lock(), threading.Event()
    done: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    def work(worker: Callable[[Task], int]) -> None:
        torch.set_num_threads(1)  # of operations that this thread starts
        try:
            with torch.no_grad():
                while not stop.is_set():
                    with lock:
                        task = next(waiting, None)
                    if task is None:
                        break
                    done.put(worker(task))
        except BaseException as error:
            done.put(error)
        finally:
            done.put(None)

    with one_thread_each():
        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            left = len(threads)
            while left:
                outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is None:
                    left -= 1
                else:
                    on_done(outcome)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
