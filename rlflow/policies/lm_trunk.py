"""The transformer below a language model head: its hidden states, checkpointed activations, a critic of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlflow.policies.engines.weights import plain_model
from rlflow.rollout import Rollout


def trunk_of(actor: nn.Module) -> nn.Module:
    """The transformer below the LM head, also under a peft wrapper."""
    trunk: nn.Module = plain_model(actor).model
    return trunk


def hidden_states(trunk: nn.Module, context: dict[str, Tensor], token: Tensor, mask: Tensor) -> Tensor:
    """`[B, C+T, hidden]` of prompt and completion; masked tokens are attended by nobody that counts."""
    ids = torch.cat([context["prompt"], token], dim=1)
    attention = torch.cat([context["prompt_mask"], mask], dim=1).long()
    position = (attention.cumsum(-1) - 1).clamp_min(0)
    with _checkpointed(trunk):
        hidden: Tensor = trunk(
            input_ids=ids, attention_mask=attention, position_ids=position, use_cache=False
        ).last_hidden_state
    return hidden


class TrunkCritic(nn.Module):
    """A value head on a trunk of its own, a copy of the actor's that is trained as that one is (in full or by LoRA)."""

    def __init__(self, actor: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(trunk_of(actor))
        self.head = head

    def forward(self, rollout: Rollout) -> Tensor:
        """`[B, T]` value before each token; the gradient reaches this trunk."""
        hidden = hidden_states(self.trunk, rollout.context, rollout.action["token"], rollout.mask)
        values: Tensor = self.head(hidden[:, -rollout.mask.shape[1] - 1 : -1].float())
        return values.squeeze(-1)


@contextmanager
def _checkpointed(trunk: nn.Module) -> Iterator[None]:
    """Let layers with `gradient_checkpointing` recompute their activations where a gradient is wanted.

    transformers does so in training mode only, which would also switch dropout on and move the ratio off 1: only the
    layers' own flag is set, that of the modules inside them stays.
    """
    layers = [layer for layer in trunk.modules() if getattr(layer, "gradient_checkpointing", False)]
    wanted = [layer for layer in layers if not layer.training] if torch.is_grad_enabled() else []
    for layer in wanted:
        layer.training = True
    try:
        yield
    finally:
        for layer in wanted:
            layer.training = False
