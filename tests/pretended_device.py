"""A device that is not there: numbers on the CPU, with the rules of the device whose name they bear.

Inside `pretended("cuda:1")` torch answers as a machine with two GPUs does, and inside `pretended("mps")` as a Mac does.
A tensor there is a `Pretended`: it holds an ordinary tensor, and refuses what its device would, which is to meet a
tensor of another device, a generator of the CPU, numpy, and, on MPS, float64. Seconds and bytes mean nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FREE, TOTAL = 22 * 2**30, 24 * 2**30
CPU_AND_CUDA = {aten._linalg_eigh.default, aten.linalg_qr.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class WrongDevice(RuntimeError):
    """What the pretended device does not do."""


class Pretended(torch.Tensor):
    """A tensor of a pretended device; `elem` holds its numbers."""

    elem: torch.Tensor
    place: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, elem: torch.Tensor, place: torch.device) -> Pretended:
        if place.type == "mps" and elem.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it."
            )
        made = torch.Tensor._make_wrapper_subclass(
            cls, elem.size(), strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            layout=elem.layout, device=torch.device("meta"),
        )  # fmt: skip
        made.elem, made.place = elem.detach(), place
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.place.type == "cuda"

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        if not isinstance(new, Pretended) or new.place != self.place:
            raise WrongDevice(f"data of {new.device} for a tensor on {self.place}")
        torch.Tensor.data.__set__(self, new)
        self.elem = new.elem

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.elem.nbytes

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() first")

    def tolist(self) -> Any:
        return self.elem.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({tuple(self.shape)}, {self.dtype}, {self.place})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside `pretended`")


def _concrete(device: Any) -> torch.device | None:
    """With the index that tensors bear; None for the CPU and for none."""
    device = torch.device(device) if device is not None else None
    if device is None or device.type not in ("cuda", "mps"):
        return None
    return torch.device(device.type, device.index or 0)


def _elem(value: Any) -> Any:
    return value.elem if isinstance(value, Pretended) else value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)([_map(function, item) for item in value])
    return function(value)


def _call(func: Any, args: Any, kwargs: dict[str, Any], here: torch.device) -> Any:
    tensors = [leaf for leaf in _leaves((args, *kwargs.values())) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    asked = kwargs.get("device")
    if not ours and asked is None:
        return func(*args, **kwargs)
    if asked is not None and torch.device(asked).type == "meta":
        # What C++ reads off a wrapper.
        asked = ours[0].place if ours else here
    if asked is not None and _concrete(asked) is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func is aten._to_copy.default:
        place = args[0].device if asked is None else torch.device(asked)
        # A device casts before it sends.
        if ours and kwargs.get("dtype") is not None:
            Pretended(torch.empty(0, dtype=kwargs["dtype"]), ours[0].place)
        return _on(
            func(_elem(args[0]), **{k: v for k, v in kwargs.items() if k != "device"}), _concrete(place)
        )
    if func is aten.copy_.default:
        func(_elem(args[0]), _elem(args[1]), *args[2:])
        return args[0]
    places = {tensor.place for tensor in ours}
    place = _concrete(asked) if asked is not None else next(iter(places), None)
    others = [tensor for tensor in tensors if not isinstance(tensor, Pretended) and tensor.dim() > 0]
    # Indices may come from the CPU; a number may, too.
    if len(places) > 1 or (others and ours and (func not in INDEXING or not isinstance(args[0], Pretended))):
        found = sorted({str(tensor.device) for tensor in tensors})
        raise WrongDevice(f"{func}: expected all tensors to be on the same device, but found {found}")
    generator = kwargs.get("generator")
    if generator is not None and place is not None and generator.device.type != place.type:
        raise WrongDevice(f"{func}: expected a {place.type} generator but found {generator.device}")
    if place is not None and place.type == "mps" and func in CPU_AND_CUDA:
        raise NotImplementedError(f"The operator '{func}' is not currently implemented for the MPS device.")
    out = func(*_map(_elem, args), **{key: _map(_elem, value) for key, value in kwargs.items()})
    if place is None or func is aten._local_scalar_dense.default:
        return out
    # What works in place gives back the very tensor.
    same = {id(tensor.elem): tensor for tensor in ours}

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return same[id(value)] if id(value) in same else _on(value, place)

    return _map(wrap, out)


def _on(tensor: torch.Tensor, place: torch.device | None) -> torch.Tensor:
    return tensor if place is None else Pretended(tensor, place)


class _Mode(TorchDispatchMode):
    def __init__(self, here: torch.device) -> None:
        super().__init__()
        self.here = here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {}, self.here)


def _module_to(real: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`Module.to`, which keeps tensors one that are one, as on a device that C++ knows."""

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or (
            _concrete(device) is None and not any(isinstance(p, Pretended) for p in module.parameters())
        ):
            return real(module, *args, **kwargs)
        memo: dict[int, torch.Tensor] = {}
        for part in module.modules():
            for kind in (part._parameters, part._buffers):
                for name, tensor in kind.items():
                    if tensor is None or (
                        tensor.device == _concrete(device) and dtype in (None, tensor.dtype)
                    ):
                        continue
                    if id(tensor) not in memo:
                        moved = tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
                        if isinstance(tensor, nn.Parameter):
                            moved = nn.Parameter(moved, tensor.requires_grad)
                        memo[id(tensor)] = moved
                    kind[name] = memo[id(tensor)]
        return module

    return to


class _Names(TorchFunctionMode):
    """Puts into words that C++ takes without the device: an index to its name, and numbers for tensors in lists."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def indexed(value: Any) -> Any:
            return (
                _concrete(value) or value
                if isinstance(value, torch.device) or value in ("cuda", "mps")
                else value
            )

        def plain(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(plain(item) for item in value)
            return value.tolist() if isinstance(value, Pretended) else value

        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is torch.tensor and isinstance(args[0], list | tuple):
            args = (plain(args[0]), *args[1:])
        if func is torch.Tensor.__getitem__ and isinstance(args[1], list):
            # C++ makes the index on the wrapper's own device, which holds no numbers.
            args = (args[0], torch.tensor(args[1]))
        args = tuple(indexed(arg) if isinstance(arg, str | torch.device) else arg for arg in args)
        kwargs = {key: indexed(value) if key == "device" else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *_, **__: answer


@contextlib.contextmanager
def pretended(name: str) -> Iterator[torch.device]:
    """Pretends that this machine has a device, `mps` or `cuda` (two of them), and yields it as tensors bear it."""
    here = _concrete(name)
    cuda = here.type == "cuda"
    answers: dict[str, Any] = {
        "cuda.is_available": cuda, "cuda.device_count": 2 if cuda else 0, "cuda.current_device": 0,
        "cuda.is_current_stream_capturing": False, "cuda.get_device_name": "a pretended GPU",
        "cuda.get_device_properties": mock.Mock(total_memory=TOTAL, major=9, minor=0),
        "cuda.get_device_capability": (9, 0), "cuda.mem_get_info": (FREE, TOTAL), "cuda.memory_allocated": 0,
        "cuda.memory_reserved": 0, "cuda.max_memory_allocated": 0, "backends.mps.is_available": not cuda,
        "backends.mps.is_built": not cuda, "cuda.get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "cuda.random.get_rng_state": torch.zeros(16, dtype=torch.uint8),
        **dict.fromkeys(
            ("cuda._lazy_init", "cuda.synchronize", "cuda.reset_peak_memory_stats", "cuda.set_rng_state",
             "cuda.manual_seed_all", "cuda.manual_seed", "cuda.random.set_rng_state", "mps.synchronize",
             "mps.manual_seed"), None,
        ),
    }  # fmt: skip
    functions = {where: _always(answer) for where, answer in answers.items()}
    functions |= {"mps._get_default_mps_generator": torch.Generator, "nn.Module.to": _module_to(nn.Module.to)}
    torch._C._ensureCUDADeviceGuardSet()
    with contextlib.ExitStack() as stack:
        for where, answer in functions.items():
            stack.enter_context(mock.patch(f"torch.{where}", answer))
        # Accelerate remembers the device of the process that it first met.
        AcceleratorState._reset_state(reset_partial_state=True)
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        torch._C._set_only_lift_cpu_tensors(True)
        # It reads onto a GPU by itself.
        read = safetensors.torch.load_file
        stack.enter_context(mock.patch.object(safetensors.torch, "load_file", lambda file, **_: read(file)))
        stack.enter_context(_Names())
        stack.enter_context(_Mode(here))
        yield here
