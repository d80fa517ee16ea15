"""Galleries of neighbors that do not fit into memory, in a temporary file that is mapped.

The file has no name: it disappears with the process, however that ends. Pages of the map are given back after use, so they do not count as
memory of the process for long; the system keeps them in its page cache as long as there is room.

Shapes: N samples, F features.
"""

import mmap
import shutil
import tempfile

import torch
from torch import Tensor
from torch.nn import functional as F

from featcache.probing.inputs.features import Features
from featcache.store.errors import RequestError
from featcache.store.reading.libc import advise
from featcache.store.text import format_bytes


def write_gallery(features: Features) -> Tensor:
    """Write features of length 1, and return a map of them: ``[N, F]``, float32, on the CPU; it must not be changed.

    Raises:
        RequestError: the folder for temporary files has no room.
    """
    size = 4 * features.num_samples * features.num_features
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise RequestError(
            f"knn keeps {format_bytes(size)} of features in a temporary file, and {folder} has {format_bytes(free)} free; set TMPDIR "
            "to a folder with more room, give more --memory, or ask for fewer layers"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        for _, block in features.blocks():
            file.write(F.normalize(block.float(), dim=1).cpu().contiguous().numpy().data)
        file.flush()
        # Private and writable, since torch warns about memory that it cannot protect; nothing writes to the map.
        pages = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(pages, dtype=torch.float32).view(features.num_samples, features.num_features)


def release_pages(part: Tensor) -> None:
    """Give back the pages of some rows of a gallery that `write_gallery` returned."""
    start = -(-part.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (part.data_ptr() + 4 * part.numel()) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start and hasattr(mmap, "MADV_DONTNEED"):
        advise(start, stop - start, mmap.MADV_DONTNEED)
