"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

Parameters of one shape step together, which makes a few large products of many small ones.

Shapes: K parameters of one shape, n the length of one of its sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

TOGETHER = 2**19
"""Numbers of parameters that step together at most: what stays in a processor's cache."""


@dataclass
class _Stack:
    """The state of K parameters of one shape; that of each is a view of it.

    Attributes:
        parameters: K of them.
        momentum: of the gradients, in the basis, (K, *shape).
        square: mean of the gradients' squares, in the basis, (K, *shape).
        outer: by side, mean of the gradients' products with themselves, (K, n, n).
        basis: by side, its eigenvectors in columns, (K, n, n).
    """

    parameters: list[nn.Parameter]
    momentum: Tensor
    square: Tensor
    outer: dict[int, Tensor]
    basis: dict[int, Tensor]

    def of_each(self) -> list[dict[str, Tensor]]:
        """The state of each parameter by the names that a checkpoint has for it."""
        named = {"momentum": self.momentum, "exp_avg_sq": self.square}
        for name, matrices in (("GG", self.outer), ("Q", self.basis)):
            named |= {f"{name}_{side}": matrix for side, matrix in matrices.items()}
        return [{name: tensor[k] for name, tensor in named.items()} for k in range(len(self.parameters))]


class Settings(TypedDict):
    """The settings of SOAP.

    Attributes:
        lr: learning rate.
        betas: decay rates of momentum and squares.
        shampoo_beta: decay rate of the preconditioner.
        eps: added to Adam's denominator.
        weight_decay: decoupled weight decay.
        precondition_frequency: steps between two changes of the basis.
        max_precondition_dim: longer sides, and vectors, keep the standard basis.
    """

    lr: float
    betas: tuple[float, float]
    shampoo_beta: float
    eps: float
    weight_decay: float
    precondition_frequency: int
    max_precondition_dim: int


class SOAP(Optimizer):
    """Takes the steps of the paper's algorithm and keeps the momentum in the basis.

    The paper turns the momentum into the basis at every step; here it is turned where the basis changes, which is the
    same but for rounding. The first step moves nothing: it looks at the gradients for the first basis. The state is
    tensors alone, so that a checkpoint can hold it.
    """

    def __init__(self, params: Iterable[nn.Parameter], **settings: Unpack[Settings]) -> None:
        self._stacks: dict[tuple[nn.Parameter, ...], _Stack] = {}
        super().__init__(params, {**settings, "step": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there; a closure, which torch allows for, is not called."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in _stacks(alike.values()):
                gradients = [p.grad for p in parameters if p.grad is not None]
                gradient = gradients[0][None] if len(gradients) == 1 else torch.stack(gradients)
                stack = self._stacked(parameters, gradient, group)
                if group["step"] > 0:
                    _step(stack, gradient, group)
            group["step"] += 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes also the state of older checkpoints, whose momentum `exp_avg` is in the standard basis."""
        super().load_state_dict(state_dict)
        self._stacks.clear()
        for state in self.state.values():
            if "exp_avg" in state:
                basis = {int(key[2:]): q[None] for key, q in state.items() if key.startswith("Q_")}
                state["momentum"] = _turn(state.pop("exp_avg")[None], basis)[0]

    def _stacked(self, parameters: list[nn.Parameter], gradient: Tensor, group: dict[str, Any]) -> _Stack:
        """The state of parameters of one shape, begun for those that have none."""
        key = tuple(parameters)
        if key in self._stacks:
            return self._stacks[key]
        most = group["max_precondition_dim"]
        shape = parameters[0].shape
        sides = [side for side, n in enumerate(shape) if len(shape) > 1 and n <= most]
        new = [k for k, parameter in enumerate(parameters) if not self.state[parameter]]
        if new:
            theirs = gradient[new]
            outer = {side: _outer(theirs, side) * (1.0 - group["shampoo_beta"]) for side in sides}
            basis = {side: _eigenvectors(matrix) for side, matrix in outer.items()}
            begun = _Stack([], torch.zeros_like(theirs), torch.zeros_like(theirs), outer, basis)
            begun.parameters = [parameters[k] for k in new]
            for parameter, state in zip(begun.parameters, begun.of_each(), strict=True):
                self.state[parameter] = state
        states = [self.state[parameter] for parameter in parameters]
        # A checkpoint's sides stay as they are, whatever is asked for now: its momentum is in their basis.
        sides = [side for side in range(len(shape)) if f"Q_{side}" in states[0]]
        joined = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        matrices = [{side: joined[f"{name}_{side}"] for side in sides} for name in ("GG", "Q")]
        stack = _Stack(parameters, joined["momentum"], joined["exp_avg_sq"], *matrices)
        for other in [other for other in self._stacks if not set(other).isdisjoint(parameters)]:
            del self._stacks[other]
        self._stacks[key] = stack
        for parameter, state in zip(parameters, stack.of_each(), strict=True):
            self.state[parameter] = state
        return stack


def _stacks(alike: Iterable[list[nn.Parameter]]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one shape, few enough to step together; a large one steps alone, where joining costs a copy."""
    for parameters in alike:
        size = max(1, TOGETHER // max(parameters[0].numel(), 1))
        for start in range(0, len(parameters), size):
            yield parameters[start : start + size]


def _eigenvectors(matrices: Tensor) -> Tensor:
    """Those of symmetric matrices (K, n, n) in columns, by falling eigenvalue."""
    try:
        vectors = torch.linalg.eigh(_factorable(matrices)).eigenvectors
    except torch.linalg.LinAlgError:
        # Where most rows are zero, as of words that are in no instruction, single precision may not converge.
        vectors = torch.linalg.eigh(matrices.cpu().double()).eigenvectors
    return vectors.to(matrices).flip(-1)


def _factorable(matrices: Tensor) -> Tensor:
    """Matrices where torch can factor them: on MPS it has neither `eigh` nor `qr`."""
    return matrices.cpu() if matrices.device.type == "mps" else matrices


def _step(stack: _Stack, gradient: Tensor, group: dict[str, Any]) -> None:
    """Moves the parameters along their gradients (K, *shape), then updates the preconditioner."""
    (beta1, beta2), step = group["betas"], group["step"]
    turned = _turn(gradient, stack.basis)
    stack.momentum.lerp_(turned, 1.0 - beta1)
    stack.square.mul_(beta2).addcmul_(turned, turned, value=1.0 - beta2)
    update = _turn(stack.momentum / stack.square.sqrt().add_(group["eps"]), stack.basis, back=True)
    size = group["lr"] * math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)
    parameters: list[Tensor] = [*stack.parameters]
    torch._foreach_add_(parameters, list(update.unbind()), alpha=-size)
    torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
    for side, matrix in stack.outer.items():
        matrix.lerp_(_outer(gradient, side), 1.0 - group["shampoo_beta"])
    if stack.basis and step % group["precondition_frequency"] == 0:
        _renew(stack)


def _renew(stack: _Stack) -> None:
    """One power iteration from the basis towards the preconditioner's eigenvectors, by falling eigenvalue."""
    momentum = _turn(stack.momentum, stack.basis, back=True)
    for side, basis in stack.basis.items():
        product = stack.outer[side] @ basis
        order = (basis * product).sum(dim=1).argsort(dim=1, descending=True)
        along = order.view(len(order), *[-1 if i == side else 1 for i in range(stack.square.dim() - 1)])
        stack.square.copy_(torch.take_along_dim(stack.square, along, side + 1))
        basis.copy_(torch.linalg.qr(_factorable(torch.take_along_dim(product, order[:, None], 2))).Q)
    stack.momentum.copy_(_turn(momentum, stack.basis))


def _turn(x: Tensor, basis: dict[int, Tensor], back: bool = False) -> Tensor:
    """K tensors (K, *shape) in the basis, or back from it."""
    for side, matrix in basis.items():
        # (K, before, n, after), of which n is turned.
        parts = x.reshape(len(x), math.prod(x.shape[1 : side + 1]), x.shape[side + 1], -1)
        if parts.shape[3] == 1:
            turned = parts.squeeze(3) @ (matrix.mT if back else matrix)
        else:
            turned = (matrix if back else matrix.mT)[:, None] @ parts
        x = turned.view(x.shape)
    return x


def _outer(x: Tensor, side: int) -> Tensor:
    """The products (K, n, n) of K tensors (K, *shape) with themselves over all sides but one."""
    rows = x.movedim(side + 1, 1).flatten(2)
    return rows @ rows.mT
