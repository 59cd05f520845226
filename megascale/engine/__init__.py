"""The training engine: sets up megatron-core and runs the step loop of one rank."""

from __future__ import annotations


def preload() -> None:
    """Import everything a rank needs; called once by the process that ranks are forked from.

    Leaves one thread, because a fork copies only the calling one, and pins torch to one thread.

    Raises:
        RuntimeError: an import started a thread. OMP_NUM_THREADS, OPENBLAS_NUM_THREADS and
            MKL_NUM_THREADS must be 1 in the environment before the process starts.
    """
    from megascale.engine.warmup import import_all

    import_all()


def thread_count() -> int:
    """Threads of this process as the operating system counts them."""
    from megascale.engine.warmup import threads

    return threads()
