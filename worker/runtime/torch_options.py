"""Process-wide options of PyTorch."""

import os
from pathlib import Path

import torch

COMPILED = "compiled"
# torch reads the second name, too.
ALLOCATOR, OLD_ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


def configure_environment(data_dir: Path) -> None:
    """Set variables that PyTorch reads later, unless they are set. Call it before a device is used.

    The results of torch.compile are kept in the data directory. Memory of a GPU is reserved in segments that grow,
    because the sizes of batches change and would leave gaps between fixed ones.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(data_dir.resolve() / COMPILED))
    if OLD_ALLOCATOR not in os.environ:
        os.environ.setdefault(ALLOCATOR, "expandable_segments:True")


def configure_cuda(*, allow_tf32: bool | None, benchmark: bool) -> None:
    """Set options of CUDA kernels.

    Args:
        allow_tf32: whether float32 is computed as TF32. None: as PyTorch does, in convolutions only.
        benchmark: whether cuDNN chooses convolutions by measurements.
    """
    if allow_tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cudnn.benchmark = benchmark
