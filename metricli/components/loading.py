"""Batches of a data set's images, read by this process or by workers beside it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import pickle
import shutil
import signal
import sys
import threading
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import forkserver, resource_tracker
from multiprocessing.util import Finalize, get_temp_dir
from typing import Any

import torch
from torch.utils.data import DataLoader

from metricli.components.dataset import Batch, ImageDataset, Item, Place, Told
from metricli.stopping import STOPPING

__all__ = ["image_loader"]


def _collate(items: Sequence[Item]) -> Batch:
    good = [item for item in items if item.image is not None]
    images = torch.stack([item.image for item in good]) if good else torch.empty(0)  # type: ignore[misc]
    return Batch(
        images=images,
        labels=torch.tensor([item.label for item in good], dtype=torch.int64),
        rows=torch.tensor([item.row for item in good], dtype=torch.int64),
        bad=[problem for item in items for problem in item.bad],
        missing=len(items) - len(good),
    )


class _Telling:
    """Batches of `Told` rows: whoever gets them needs no copy of the table."""

    def __init__(self, dataset: ImageDataset, batches: Iterable[Sequence[int | Place]]) -> None:
        self.dataset = dataset
        self.batches = batches

    def __iter__(self) -> Iterator[list[Told]]:
        for batch in self.batches:
            yield [self.dataset.told(key) for key in batch]

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]


def _start_worker(_worker: int) -> None:
    for each in STOPPING:  # they reach the whole group; the parent decides
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_die_with_trainer, daemon=True).start()


def _die_with_trainer() -> None:
    """End this worker with the process that asked for it: its own parent, the forkserver, would live on.

    That process leaves a folder behind if it is killed: the one in which the forkserver listens.
    """
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        shutil.rmtree(get_temp_dir(), ignore_errors=True)
        os._exit(1)


def _start_helpers() -> None:
    """Start the forkserver and the resource tracker so that they and the workers never see a signal.

    One to the whole group would end them, and without them nothing is tidied up. What comes to this process
    meanwhile comes afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        resource_tracker.ensure_running()  # which unblocks two of them
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Workers started here do not run the user's script again, which may have no `__main__` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _needs_main(transform: object) -> bool:
    try:
        return b"__main__" in pickle.dumps(transform)
    except Exception:  # then starting the workers says what is wrong
        return True


class _WorkerLoader(DataLoader[Item]):
    dataset: ImageDataset

    def _get_iterator(self) -> Any:
        _start_helpers()
        with nullcontext() if _needs_main(self.dataset.transform) else _without_main():
            iterator: Any = super()._get_iterator()
        # At exit multiprocessing would send SIGTERM, which they ignore, and wait for them.
        Finalize(iterator, _kill, args=(iterator._workers,), exitpriority=10)
        return iterator


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        worker.kill()


def _worker_context(transform: object) -> multiprocessing.context.BaseContext:
    """Workers forked from a server that has imported this module and the transform's, and run nothing."""
    context = multiprocessing.get_context("forkserver")
    needed = {__name__, transform.__module__} - {"__main__"}
    context.set_forkserver_preload(sorted(needed))
    return context


def image_loader(
    dataset: ImageDataset,
    batches: Iterable[Sequence[int | Place]],
    *,
    num_workers: int,
    pin_memory: bool = False,
) -> DataLoader[Item]:
    """A loader of `Batch`es in the order of `batches`; the same batches for any number of workers.

    Workers start from a fresh process, because forking one that has run torch can hang. They are told of each
    image with its batch, and only those that may have to find another image have the table.
    """
    if num_workers == 0:
        return DataLoader(dataset, batch_sampler=batches, collate_fn=_collate, pin_memory=pin_memory)  # type: ignore[arg-type]
    has_table = dataset.replace_bad
    return _WorkerLoader(
        dataset if has_table else dataset.without_table(),
        batch_sampler=batches if has_table else _Telling(dataset, batches),  # type: ignore[arg-type]
        collate_fn=_collate,
        num_workers=num_workers,
        worker_init_fn=_start_worker,
        persistent_workers=True,
        prefetch_factor=4,
        pin_memory=pin_memory,
        multiprocessing_context=_worker_context(dataset.transform),
    )
