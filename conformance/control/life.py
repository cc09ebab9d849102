"""Steps in the life of a backbone, taken alike on the subject and on the control."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from conformance.assertions import getting_on
from conformance.control.calls import IGNORED_LABEL, Inputs, embeddings_of

STEPS = (
    "forward", "masked", "patches", "generate", "decode far", "far positions", "step", "train",
    "eval", "reload",
)  # fmt: skip
_GROWTH = 0.02
"""What a step adds to every parameter, as a share of it: the same for subject and control, whatever
their gradients are (TRN-04 compares those)."""


def take(backbone: Any, step: str, inputs: Inputs, index: int) -> None:
    """Take one step; `index` gives each its own ids."""
    getting_on()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if step in ("train", "eval"):
            backbone.train(step == "train")
        elif step == "reload":
            state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
            backbone.load_state_dict(state)
            for tensor in state.values():
                tensor.zero_()
        elif step == "step":
            _step(backbone, inputs, index)
        else:
            with torch.no_grad():
                _call(backbone, step, inputs, index)


def probe(backbone: Any, inputs: Inputs) -> torch.Tensor:
    """Logits in `eval()` of a batch whose rows are padded differently, at real positions."""
    training = backbone.training
    backbone.eval()
    ids, mask = inputs.ids(3, 11), torch.ones(3, 11, dtype=torch.long)
    mask[1, :2] = mask[2, :5] = 0
    with torch.no_grad():
        logits = backbone(input_ids=ids, attention_mask=mask).logits
    backbone.train(training)
    real: torch.Tensor = logits[..., inputs.columns][mask.bool()]
    return real


def _call(backbone: Any, step: str, inputs: Inputs, index: int) -> None:
    ids = inputs.ids(3, 11, offset=10 + index)
    mask = torch.ones_like(ids)
    if step == "forward":
        backbone(input_ids=ids, attention_mask=mask)
    elif step == "masked":
        mask[0, :4] = mask[1, :1] = 0
        backbone(input_ids=ids, attention_mask=mask)
    elif step == "patches":
        rows = embeddings_of(backbone, ids)
        patches = inputs.patches(3, 4).to(rows.dtype) * rows.float().std()
        whole = torch.cat([rows[:, :1], patches, rows[:, 1:]], 1)
        backbone(inputs_embeds=whole, attention_mask=torch.ones(whole.shape[:2], dtype=torch.long))
    elif step == "generate":
        mask[0, :3] = 0
        backbone.llm.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False,
            pad_token_id=int(inputs.ordinary[0]),
        )  # fmt: skip
    elif step == "far positions" and inputs.first_length:
        # The factors for longer texts come into force.
        far = torch.tensor([[inputs.first_length, inputs.first_length + 1]])
        backbone(input_ids=ids[:1, :2], attention_mask=mask[:1, :2], position_ids=far)
    elif step == "decode far":
        text = inputs.ids(1, 66, offset=10 + index)
        cache = backbone(
            input_ids=text, attention_mask=torch.ones_like(text), use_cache=True
        ).past_key_values
        backbone(
            input_ids=text[:, :1], attention_mask=torch.ones(1, 67, dtype=torch.long),
            past_key_values=cache, use_cache=True,
        )  # fmt: skip


def _step(backbone: Any, inputs: Inputs, index: int) -> None:
    """A backward pass, and other weights after it."""
    ids = inputs.ids(2, 8, offset=10 + index)
    labels = ids.clone()
    labels[:, 0] = IGNORED_LABEL
    backbone(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
    with torch.no_grad():
        for parameter in backbone.llm.parameters():
            parameter.mul_(1.0 + _GROWTH)
    backbone.llm.zero_grad(set_to_none=True)
