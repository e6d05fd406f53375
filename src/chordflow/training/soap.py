"""SOAP as a checkpoint can hold it (Vyas et al. 2024, arXiv 2409.11321); the steps are pytorch-optimizer's."""

from __future__ import annotations

from typing import Any

import pytorch_optimizer
from torch import Tensor


class SOAP(pytorch_optimizer.SOAP):
    """The package's SOAP with a state that is tensors alone.

    The package keeps lists of matrices, with an empty list where a side keeps the standard basis, and settings
    among the state; a checkpoint holds tensors by name. So each list is written out as one entry a side and read
    back. Bases are kept row by row in memory, as a checkpoint brings them back: matrix products of another
    layout round otherwise, and a resumed run would not end in the same bits.

    Args:
        params: what to train.
        **options: of the package's class; `shampoo_beta` must be given.
    """

    LISTS = ("GG", "Q")
    SETTINGS = ("precondition_frequency", "shampoo_beta")

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            # The package adds it at the first step; groups must have the same keys at any time.
            group["step"] = 0

    def init_group(self, group: dict[str, Any], **options: Any) -> None:
        """Begins the state of parameters that have none; settings of the group hold for all."""
        super().init_group(group, **options)
        for parameter in group["params"]:
            if parameter in self.state:
                self.state[parameter].update({key: group[key] for key in self.SETTINGS})

    @staticmethod
    def get_orthogonal_matrix(mat: Any) -> list[Any]:
        """Eigenvectors of each side's preconditioner."""
        return _row_by_row(pytorch_optimizer.SOAP.get_orthogonal_matrix(mat))

    def get_orthogonal_matrix_qr(self, *arguments: Any, **options: Any) -> list[Any]:
        """One power iteration towards them."""
        return _row_by_row(super().get_orthogonal_matrix_qr(*arguments, **options))

    def state_dict(self) -> dict[str, Any]:
        """The state with `GG_0`, `GG_1`, `Q_0`, ... for the matrices of each side that has one."""
        packed = super().state_dict()
        state = {}
        for index, entry in packed["state"].items():
            flat = {key: entry[key] for key in ("exp_avg", "exp_avg_sq")}
            for key in self.LISTS:
                flat |= {f"{key}_{side}": m for side, m in enumerate(entry[key]) if isinstance(m, Tensor)}
            state[index] = flat
        return {**packed, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gives."""
        state = {}
        for index, flat in state_dict["state"].items():
            sides = range(max(flat["exp_avg"].dim(), 1))
            # Copies, for where in memory a matrix begins decides how its products round as well.
            copies = {key: tensor.clone() for key, tensor in flat.items()}
            lists = {key: [copies.get(f"{key}_{side}", []) for side in sides] for key in self.LISTS}
            state[index] = {"exp_avg": copies["exp_avg"], "exp_avg_sq": copies["exp_avg_sq"], **lists}
        super().load_state_dict({**state_dict, "state": state})


def _row_by_row(matrices: list[Any]) -> list[Any]:
    return [matrix.contiguous() if isinstance(matrix, Tensor) else matrix for matrix in matrices]
