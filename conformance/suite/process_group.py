"""A real process group of one rank over gloo, for clauses about sharding."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def one_rank() -> Iterator[None]:
    """A gloo process group of one rank while the body runs; an existing one is used as it is."""
    import torch.distributed as dist
    from torch.distributed import FileStore  # type: ignore[attr-defined]

    if dist.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="conformance-gloo-") as folder:
        # A file store needs no port, so that two runs at once cannot take each other's.
        store = FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
