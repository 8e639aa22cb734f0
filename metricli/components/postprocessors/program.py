"""A pairwise model from a file, without Python code: a TorchScript archive.

Not an archive of torch.export: reading one unpickles with any class allowed and evaluates text as Python
(torch 2.15), so a file could run anything. TorchScript is unpickled in C++, where only tensors, plain
containers and the archive's own classes exist, and its operations are torch's. Those that read or write
files are refused.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

__all__ = ["load_program"]

_FILES = re.compile(rb"\b(save|from_file|read_file|write_file)\b")
"""Operations of torch and torchvision that touch files; TorchScript code writes their names out."""


def load_program(path: str) -> nn.Module:
    """The module of a file that `torch.jit.save` wrote, on the CPU.

    Raises:
        ValueError: the file is missing, is no TorchScript archive, or reads or writes files when run.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"the program {path!r} {'is a folder' if file.is_dir() else 'does not exist'}")
    try:
        with zipfile.ZipFile(file) as archive:
            names = [each for each in archive.infolist() if "/code/" in each.filename]
            touching = [each.filename for each in names if _FILES.search(archive.read(each))]
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read the program {path!r}: {error}") from None
    if not names:
        raise ValueError(f"the program {path!r} holds no TorchScript code; write it with torch.jit.save")
    if touching:
        raise ValueError(f"the program {path!r} reads or writes files ({touching[0]}), refused")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
            module: nn.Module = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot read the program {path!r}: {reason}") from None
    return module
