"""The training step on a CPU: the LM head and the loss only where there are labels.

On CUDA, TRL's fused LM head projects only positions with a label; on a CPU it projects all of them, most of which are
prompt. Here the backbone's output is cut to the labelled positions before it reaches that same head, so the
arithmetic (scaling, softcap, chunks of the vocabulary) stays TRL's.
"""

import functools
import types

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ragfit.data.mask import IGNORE_INDEX
from ragfit.errors import ConfigError


def project_labelled_only(model: PreTrainedModel) -> None:
    """Make a base model's fused LM head (TRL's `add_fused_lm_head`) work on labelled positions alone, on a CPU.

    Per-token fields then have the shape (1, labels): the same values in the same order, so their sums are unchanged.
    """
    fused_forward = model.forward
    text_config = model.config.get_text_config()
    chosen = []  # the labelled positions of the pass under way

    def cut(backbone: torch.nn.Module, args: tuple, output: ModelOutput) -> ModelOutput:
        if chosen:
            output.last_hidden_state = output.last_hidden_state[:, :-1][chosen.pop()][None]
        return output

    @functools.wraps(fused_forward.__func__)  # the signature that `generate` and PEFT read
    def forward(self: PreTrainedModel, *args, fused_lm_head: bool = False, **kwargs) -> ModelOutput | tuple:
        labels, shift_labels = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
        if not fused_lm_head or labels is None or shift_labels is not None or labels.device.type != "cpu":
            return fused_forward(*args, fused_lm_head=fused_lm_head, labels=labels, shift_labels=shift_labels, **kwargs)
        mask = kwargs.get("attention_mask")
        # A router's balance loss counts tokens by the mask.
        balanced = kwargs.get("output_router_logits") or getattr(text_config, "output_router_logits", False)
        if mask is not None and not balanced and right_padded(mask):
            kwargs["attention_mask"] = None  # a causal model never looks at what comes later, and its kernel is faster
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


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Refuse a model whose loss of a few tokens TRL's fused head computes differently: it would learn other logits."""
    if is_sharded(model):
        return
    embedding, training = model.get_input_embeddings(), model.training
    ids = (torch.arange(1, 9) * 7919 % embedding.weight.shape[0])[None].to(embedding.weight.device)
    model.eval()
    # Without the loss of a mixture's router, which the two weigh differently where train.router_aux_loss_coef is set.
    plain = {"output_router_logits": False} if "output_router_logits" in vars(model.config.get_text_config()) else {}
    own = model(input_ids=ids, labels=ids, use_cache=False, **plain).loss
    fused = model(input_ids=ids, labels=ids, fused_lm_head=True, **plain).loss
    model.train(training)
    if not torch.allclose(own.float().cpu(), fused.float().cpu(), rtol=0.02, atol=0.02, equal_nan=True):
        problem = f"{type(model).__name__} does not compute its logits as TRL's loss does (a loss of {own:.4f} against "
        problem += f"{fused:.4f} for the same tokens), so training would go astray"
        raise ConfigError("model.model_name_or_path", problem, "Choose another model, or another release of trl.")
