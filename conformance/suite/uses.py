"""What hosts do with a backbone, each use by a name that completes "… changed the process"."""

from __future__ import annotations

import contextlib
import copy
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from conformance.control.calls import IGNORED_LABEL
from conformance.subject.subject import Subject
from conformance.suite.dialogues import turns_of
from conformance.suite.models import probe_ids

MESSAGES = ("Pick up the cup.", "It is on the table.", "Now the “other” one &amp; go.", "Done.")
"""A dialogue of two exchanges."""


def uses_of(subject: Subject, backbone: Any, mode: str) -> Mapping[str, Callable[[], Any]]:
    """The uses of one instance, in an order in which each finds what it needs; `backbone` is the
    caller's own, since training, checkpointing and saving change it. Whether they work is for other
    clauses to say.
    """
    ids = probe_ids(subject)
    tokenizer = backbone.get_tokenizer()

    def forward() -> None:
        with torch.no_grad():
            backbone.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))

    def train() -> None:
        labels = ids.masked_fill(torch.arange(ids.shape[1]) == 0, IGNORED_LABEL)
        backbone.train()(input_ids=ids, labels=labels).loss.backward()
        backbone.llm.zero_grad(set_to_none=True)
        backbone.eval()

    def generate(*, sampled: bool = False) -> None:
        backbone.llm.generate(
            input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=2,
            do_sample=sampled,
        )  # fmt: skip

    def refused() -> None:
        """Calls that raise, as where memory runs out: hosts catch that and go on with less."""
        width = backbone.llm.get_input_embeddings().weight.shape[1]
        wrong = torch.zeros(1, 4, width + 1, dtype=next(backbone.llm.parameters()).dtype)
        for change_mode, gradients in ((backbone.train, True), (backbone.eval, False)):
            change_mode()
            with contextlib.suppress(Exception), torch.set_grad_enabled(gradients):
                backbone(inputs_embeds=wrong, attention_mask=torch.ones(1, 4, dtype=torch.long))
        with contextlib.suppress(Exception):
            backbone.llm.generate(
                input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=2,
                do_sample=False, logits_processor=[_interrupted],
            )  # fmt: skip

    def encode() -> None:
        texts = list(MESSAGES)
        tokenizer(texts[0], truncation=True, return_tensors="pt")
        tokenizer(texts, padding="longest", return_tensors="pt")
        tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)

    def prompt() -> None:
        for host in subject.working_hosts:
            if host.mode == mode:
                builder = host.builder()
                turns_of(builder, MESSAGES)
                builder.get_potential_prompt(MESSAGES[0])
                builder.get_prompt()

    def wrap() -> None:
        for member in ("transformer_layer_cls", "half_precision_dtype", "embed_dim"):
            getattr(backbone, member, None)
        backbone.get_fsdp_wrapping_policy()

    def save() -> None:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(backbone.state_dict(), Path(folder) / "state.pt")
            backbone.llm.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    def load() -> None:
        backbone.load_state_dict(backbone.state_dict())

    def freeze() -> None:
        backbone.requires_grad_(False)
        backbone.requires_grad_(True)

    def change_modes() -> None:
        backbone.train()
        backbone.eval()

    def cast() -> None:
        backbone.to(getattr(backbone, "half_precision_dtype", torch.bfloat16))

    return {
        "a forward": forward,
        "a step of training": train,
        "generation": generate,
        "sampling": lambda: generate(sampled=True),
        "a call that raises": refused,
        "embedding ids": lambda: backbone.embed_input_ids(ids),
        "encoding and decoding text": encode,
        "building prompts": prompt,
        "asking for the wrap policy": wrap,
        "copying": lambda: copy.deepcopy(backbone),
        "enabling gradient checkpointing": lambda: backbone.enable_gradient_checkpointing(),
        "saving": save,
        "loading a state dict": load,
        "freezing and unfreezing": freeze,
        "changing modes": change_modes,
        "pickling": lambda: pickle.loads(pickle.dumps(backbone)),
        "casting to half precision": cast,
        "a call in half precision that raises": refused,
    }


def _interrupted(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("interrupted by the conformance suite")
