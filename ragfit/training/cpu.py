"""The training step on a CPU: the LM head and the loss only where there are labels.

On CUDA, TRL's fused LM head projects only positions with a label; on a CPU it projects all of them, most of which are
prompt. Here the backbone's output is cut to the labelled positions before it reaches that same head, so the
arithmetic (scaling, softcap, chunks of the vocabulary) stays TRL's.
"""

import functools
import types
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from ragfit.data.mask import IGNORE_INDEX
from ragfit.errors import ConfigError

if TYPE_CHECKING:
    from transformers.utils import ModelOutput


def project_labelled_only(model: PreTrainedModel) -> None:
    """Make the fused LM head of a base model (without PEFT's wrapper) work on labelled positions alone, on a CPU.

    A forward pass with `fused_lm_head=True` then returns per-token fields of shape (1, labels) instead of
    (rows, positions - 1): the same values, in the same order, without the zeros of positions that have no label.
    Sums over them, which is all that losses and metrics take, are unchanged.
    """
    fused_forward = model.forward
    text_config = model.config.get_text_config()
    chosen = []  # the labelled positions of the pass under way

    def cut(backbone: torch.nn.Module, args: tuple, output: "ModelOutput") -> "ModelOutput":
        if chosen:
            output.last_hidden_state = output.last_hidden_state[:, :-1][chosen.pop()][None]
        return output

    @functools.wraps(fused_forward.__func__)  # the signature that `generate` and PEFT read
    def forward(
        self: PreTrainedModel, *args, labels: torch.Tensor | None = None, fused_lm_head: bool = False, **kwargs
    ) -> "ModelOutput | tuple":
        if not fused_lm_head or labels is None or "shift_labels" in kwargs or labels.device.type != "cpu":
            return fused_forward(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        mask = kwargs.get("attention_mask")
        # A router's balance loss counts tokens by the mask.
        balanced = kwargs.get("output_router_logits") or getattr(text_config, "output_router_logits", False)
        if mask is not None and not balanced and right_padded(mask):
            # A causal model never looks at what comes later, so padding on the right needs no mask; without one,
            # attention takes its causal kernel.
            kwargs["attention_mask"] = None
        labelled = labels[:, 1:] != IGNORE_INDEX
        chosen.append(labelled)
        try:
            return fused_forward(*args, fused_lm_head=True, shift_labels=labels[:, 1:][labelled][None], **kwargs)
        finally:
            chosen.clear()

    model.base_model.register_forward_hook(cut)
    model.forward = types.MethodType(forward, model)


def right_padded(mask: torch.Tensor) -> bool:
    """Whether an attention mask of shape (rows, positions) has its zeros only at the ends of rows."""
    return mask.dim() == 2 and bool((mask[:, 1:] <= mask[:, :-1]).all()) and bool(mask[:, 0].all())


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether a model has no weights to compute with yet, because several processes share them."""
    embedding = model.get_input_embeddings()
    return embedding is None or embedding.weight.is_meta or embedding.weight.numel() == 0


def check_head(model: PreTrainedModel) -> None:
    """Compare TRL's loss with the base model's own on a few tokens; a ConfigError where they differ beyond rounding.

    TRL multiplies by the LM head's weight itself and knows the scales and softcaps of the architectures it was written
    for. With a head that does something else, it would train on other logits than those the model answers with.
    """
    if is_sharded(model):
        return
    embedding = model.get_input_embeddings()
    ids = (torch.arange(1, 9) * 7919 % embedding.weight.shape[0])[None].to(embedding.weight.device)
    training = model.training
    model.eval()
    # Without the loss of a mixture's router, which the two weigh differently where train.router_aux_loss_coef is set.
    plain = {"output_router_logits": False} if "output_router_logits" in vars(model.config.get_text_config()) else {}
    with torch.no_grad():
        own = model(input_ids=ids, labels=ids, use_cache=False, **plain).loss
        fused = model(input_ids=ids, labels=ids, fused_lm_head=True, **plain).loss
    model.train(training)
    if not torch.allclose(own.float().cpu(), fused.float().cpu(), rtol=0.02, atol=0.02, equal_nan=True):
        losses = f"a loss of {own:.4f} against {fused:.4f} for the same tokens"
        problem = f"{type(model).__name__} does not compute its logits as TRL's loss does ({losses})"
        raise ConfigError("model.model_name_or_path", problem, "Choose another model, or another release of trl.")
