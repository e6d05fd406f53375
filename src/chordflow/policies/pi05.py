"""The adapter for pi0.5 (Physical Intelligence 2025, arXiv 2504.16054).

pi0's network with two differences: the checkpoint's preprocessor writes the state into the prompt, so a
context needs only the prefix's keys and values, and time reaches the expert through adaptive norms.

Shapes: B batch, H chunk size, D = max_action_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from torch import Tensor

from chordflow.policies.base import Batch
from chordflow.policies.context import Context
from chordflow.policies.pi0 import PI0FlowPolicy
from chordflow.policies.prefix import PrefixContext


class PI05FlowPolicy(PI0FlowPolicy):
    """A stock `PI05Policy` as a velocity field."""

    family = "pi05"
    policy_class: type[Any] = PI05Policy
    encoded_once: ClassVar[str] = "keys and values of images, language and state"
    head_projections: ClassVar[tuple[str, ...]] = (
        "action_in_proj.", "action_out_proj.", "time_mlp_in.", "time_mlp_out.",
    )  # fmt: skip
    legacy_names: ClassVar[Mapping[str, str]] = {
        "action_time_mlp_in.": "time_mlp_in.",
        "action_time_mlp_out.": "time_mlp_out.",
    }

    def encode(self, batch: Batch) -> PrefixContext:
        """Encodes images and the prompt, the state in it, into keys and values."""
        return self.encode_prefix(batch)

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """pi0.5's own `denoise_step` on a cache made for this call."""
        assert isinstance(context, PrefixContext)
        return self.policy.model.denoise_step(
            prefix_pad_masks=context.mask,
            past_key_values=context.cache(),
            x_t=x_t,
            timestep=t,
        )
