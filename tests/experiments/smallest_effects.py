"""How small a defect each numerical gate still sees. `python -m tests.experiments.smallest_effects`

Each defect is planted ever smaller until its clause passes; the smallest that died goes into
`tests/mutants/smallest_effects.json`, from where the kill matrix takes it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from backbones.mistral import MistralLLMBackbone
from conformance.run.judging import judge
from conformance.run.request import RunRequest
from conformance.run.session import open_session
from conformance.subject.target import Target
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from tests import ROOT
from tests.mutants import INSTRUCT

RESULTS = ROOT / "tests" / "mutants" / "smallest_effects.json"

Edit = Callable[[Any, float], None]


def main() -> int:
    torch.set_num_threads(1)
    rows = []
    for (clause, what), edit in EFFECTS.items():
        size = 1.0
        while _dies(clause, edit, size / 2):
            size /= 2
        rows.append({"clause": clause, "defect": what, "smallest": size, "passes": size / 2})
        print(f"{clause} {what}: dies down to {size:.2g}, passes at {size / 2:.2g}", flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def _dies(clause: str, edit: Edit, size: float) -> bool:
    def factory(*args: Any, **kwargs: Any) -> Any:
        backbone = MistralLLMBackbone(*args, **kwargs)
        edit(backbone.llm, size)
        return backbone

    target = Target("a defect", factory, INSTRUCT)
    with (
        tempfile.TemporaryDirectory() as home,
        open_session(
            target, RunRequest(target=target.text), Path(home) / "hf", _silence, {}
        ) as session,
    ):
        session.construct()
        (outcome,) = (
            item for item in judge(session.subject, [clause]) if isinstance(item, ClauseOutcome)
        )
    return outcome.outcome is Outcome.FAILED


def _silence(phase: str, detail: str) -> None:
    pass


def _epsilon(llm: Any, size: float) -> None:
    llm.model.layers[1].input_layernorm.variance_epsilon *= 1 + size


def _theta(llm: Any, size: float) -> None:
    for module in llm.modules():
        if hasattr(module, "inv_freq"):
            count = len(module.inv_freq)
            module.inv_freq.mul_((1 + size) ** -(torch.arange(count) / count))


def _scale(llm: Any, size: float) -> None:
    llm.model.layers[1].self_attn.scaling *= 1 + size


def _mixed_rows(llm: Any, size: float) -> None:
    llm.model.layers[0].register_forward_hook(
        lambda layer, args, out: (
            out + size * (out.roll(1, 0) - out) if torch.is_tensor(out) else out
        )
    )


def _noise(path: str, *, only_bfloat16: bool) -> Edit:
    """Noise of `size` times the output of one module."""

    def edit(llm: Any, size: float) -> None:
        def add(module: Any, args: Any, out: Any) -> Any:
            made = out[0] if isinstance(out, tuple) else out
            if only_bfloat16 and made.dtype != torch.bfloat16:
                return out
            drawn = torch.randn(made.shape, generator=torch.Generator().manual_seed(made.numel()))
            noisy = (made.float() * (1 + size * drawn)).to(made.dtype)
            return (noisy, *out[1:]) if isinstance(out, tuple) else noisy

        llm.get_submodule(path).register_forward_hook(add)

    return edit


EFFECTS: dict[tuple[str, str], Edit] = {
    ("FWD-01", "epsilon of one norm, larger by this share"): _epsilon,
    ("FWD-01", "rotary theta, larger by this share"): _theta,
    ("FWD-01", "attention scale of one layer, larger by this share"): _scale,
    ("FWD-01", "noise on one MLP's output, this share of it"): _noise(
        "model.layers.1.mlp", only_bfloat16=False
    ),
    ("FWD-07", "this share of the neighbouring row mixed into each row"): _mixed_rows,
    (
        "HALF-07",
        "noise on one attention's output in bfloat16, this share of it (bfloat16 rounds by up to "
        "0.0039)",
    ): _noise("model.layers.1.self_attn", only_bfloat16=True),
    (
        "HALF-02",
        "noise on the embeddings in bfloat16, this share of them (bfloat16 rounds by up to 0.0039)",
    ): _noise("model.embed_tokens", only_bfloat16=True),
}


if __name__ == "__main__":
    sys.exit(main())
