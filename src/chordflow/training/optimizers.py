"""Optimisers of the student, a choice on the command line: AdamW or SOAP.

Each is one `torch.optim.Optimizer` whose state LeRobot's checkpoints can hold: tensors by name, and numbers in
the parameter groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import draccus
import torch
from torch import nn
from torch.optim import Optimizer

from chordflow.checks import Checked, check_range, number
from chordflow.errors import UserError
from chordflow.training.soap import SOAP


@dataclass
class OptimizerConfig(Checked, draccus.ChoiceRegistry):
    """What every optimiser has; names as in LeRobot, `type` chooses which.

    Attributes:
        lr: peak learning rate. 2e-5 suits a fine-tuned checkpoint of full size, 1e-3 a tiny model.
        betas: decay rates of Adam's moments.
        eps: added to Adam's denominator.
        weight_decay: decoupled weight decay.
        grad_clip_norm: gradients are scaled down to this norm.
    """

    PREFIX = "optimizer."

    lr: float = number(2e-5, above=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = number(1e-8, at_least=0)
    weight_decay: float = number(1e-10, at_least=0)
    grad_clip_norm: float = 10.0

    @classmethod
    def default_choice_name(cls) -> str:
        """What settings without a type are of; the default of every verb."""
        return "soap"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("optimizer.betas", list(self.betas), at_least=0, below=1)
        if not self.grad_clip_norm > 0:
            raise UserError(f"optimizer.grad_clip_norm={self.grad_clip_norm}: give a norm above 0.")

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimiser of a student's trained parameters, float32."""
        raise NotImplementedError(f"{type(self).__name__} does not name its optimiser; AdamWConfig is one")

    def settings(self) -> dict[str, Any]:
        """The settings of its parameter group but for the learning rate."""
        return {"betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}

    def put_over(self, optimizer: Optimizer) -> None:
        """Puts these settings over those that a checkpoint brought along; the rates are the scheduler's."""
        for group in optimizer.param_groups:
            group.update(initial_lr=self.lr, **self.settings())


@OptimizerConfig.register_subclass("adamw")
@dataclass
class AdamWConfig(OptimizerConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """torch's AdamW over all of them."""
        return torch.optim.AdamW(parameters, lr=self.lr, **self.settings())


@OptimizerConfig.register_subclass("soap")
@dataclass
class SOAPConfig(OptimizerConfig):
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

    The learning rate that suits AdamW suits it as well. Its first step moves nothing: it looks at the gradient for
    the first basis.

    Attributes:
        precondition_frequency: steps between two updates of the basis.
        max_precondition_dim: sides of a matrix that are longer keep the standard basis; a side of n costs n * n
            numbers twice, and time to match.
    """

    betas: tuple[float, float] = (0.95, 0.95)
    precondition_frequency: int = number(10, at_least=1)
    max_precondition_dim: int = number(1024, at_least=1)

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """SOAP over all of them."""
        return SOAP(parameters, lr=self.lr, **self.settings())

    def settings(self) -> dict[str, Any]:
        """Adam's and the basis's."""
        return {
            **super().settings(),
            "shampoo_beta": self.betas[1],
            "precondition_frequency": self.precondition_frequency,
            "max_precondition_dim": self.max_precondition_dim,
        }
