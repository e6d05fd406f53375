"""SHA-256 of tensors, by which weights and statistics are told from others, in files too."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor], about: bytes = b"") -> str:
    """SHA-256, in hexadecimal, over `about` and the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256(about)
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{data.dtype}:{tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
