"""The control itself: the library's own model from the subject's checkpoint, and nothing else."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from conformance.parity.library import in_dtype


@dataclass(frozen=True)
class Mirrored:
    """What the mirror copies from a subject, because it is the subject's choice: the number of
    rows, and the rows that the checkpoint does not have. `rows` of the input embedding and the
    head are of shape (new rows, ...)."""

    count: int
    embedding: torch.Tensor
    head: tuple[torch.Tensor, ...]


def mirrored_from(llm: Any, checkpoint_rows: int) -> Mirrored:
    """The choices of a built subject whose checkpoint has `checkpoint_rows` rows."""
    embedding, head = llm.get_input_embeddings().weight, llm.get_output_embeddings()
    return Mirrored(
        count=int(embedding.shape[0]),
        embedding=embedding.detach()[checkpoint_rows:].float().clone(),
        head=tuple(
            tensor.detach()[checkpoint_rows:].float().clone() for tensor in head.parameters()
        ),
    )


class Control(torch.nn.Module):
    """A backbone in the shortest sound code: the model that the library loads from `hub_id`.

    With `mirrored` it has the subject's rows; without it those of the checkpoint. It has of the
    contract what a call needs; the tokenizer and the prompts of a subject are held to the published
    ones by clauses of their own.
    """

    def __init__(
        self,
        hub_id: str,
        *,
        dtype: torch.dtype,
        token: str | None,
        cache: bool,
        mirrored: Mirrored | None = None,
        attention: str | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.llm = AutoModelForCausalLM.from_pretrained(
            hub_id,
            token=token,
            **in_dtype(dtype),
            **({} if attention is None else {"attn_implementation": attention}),
        )
        self.llm.config.use_cache = cache
        if mirrored is not None:
            self._fit(mirrored)
        self.llm.generation_config.do_sample = False
        self.eval()

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.llm.get_input_embeddings()(input_ids)
        return rows

    def forward(self, **inputs: Any) -> Any:
        return self.llm(**inputs)

    def enable_gradient_checkpointing(self) -> None:
        self.llm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        self.llm.enable_input_require_grads()

    def _fit(self, mirrored: Mirrored) -> None:
        """Take over the subject's rows; both models have those of the checkpoint already."""
        quick = (
            # Otherwise new rows are drawn, slowly, only to be replaced.
            {"mean_resizing": False}
            if "mean_resizing" in inspect.signature(self.llm.resize_token_embeddings).parameters
            else {}
        )
        self.llm.resize_token_embeddings(mirrored.count, **quick)
        embedding, head = self.llm.get_input_embeddings(), self.llm.get_output_embeddings()
        pairs = [
            (embedding.weight, mirrored.embedding),
            *zip(head.parameters(), mirrored.head, strict=True),
        ]
        with torch.no_grad():
            for parameter, new in pairs:
                if len(new):
                    parameter[-len(new) :] = new.to(parameter.dtype)
