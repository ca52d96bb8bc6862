"""How many threads BLAS uses in this process."""

from __future__ import annotations

import threadpoolctl


def limit_blas(threads: int) -> threadpoolctl.threadpool_limits:
    """Let BLAS and OpenMP libraries use `threads` threads; as a context manager, until its end.

    threadpoolctl lets the first thread that sets a limit keep the say, and ignores what others set after it without a
    word; workers are threads, and each must have its own way.
    """
    threadpoolctl.OpenBLASController.clear_controlling_thread(force=True)
    return threadpoolctl.threadpool_limits(threads)


def limit_threads(threads: int) -> None:
    """Let BLAS, OpenMP, torch and Faiss use `threads` threads from this one, so that workers do not oversubscribe."""
    import torch  # before Faiss: of two OpenMP libraries the one that came first serves
    import faiss  # isort: skip

    limit_blas(threads)  # each time: what was loaded or set since would keep its own number
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
