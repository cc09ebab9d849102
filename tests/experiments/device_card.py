"""What a machine with a CUDA device is: versions, the card, its ceilings, and whether its products
keep partial sums in bf16. `python -m tests.experiments.device_card`
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import distributions

import torch

from conformance.bench.child import device
from conformance.run.environment import environment

_ROWS = (512, 4096)
_SHAPES = (
    (4096, 4096),
    (1024, 4096),
    (14336, 4096),
    (4096, 14336),
    (2134, 4096),
    (32000, 4096),
    (64, 64),
    (64, 224),
)
"""Outputs and inputs of linear layers: Mistral-7B's, and the probe's."""


def main() -> int:
    print(*sorted({f"{found.name} {found.version}" for found in distributions()}), sep="\n")
    print("environment", json.dumps(environment()))
    backends = torch.backends
    print(
        f"CUDA {torch.version.cuda}, cuDNN {backends.cudnn.version()}, "
        f"TF32 {backends.cuda.matmul.allow_tf32} in products, {backends.cudnn.allow_tf32} in cuDNN"
    )
    if not torch.cuda.is_available():
        print("there is no CUDA device")
        return 0
    free, total = torch.cuda.mem_get_info()
    print(torch.cuda.get_device_properties(0), f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    for asked in (device.device_facts, device.state, device.ceilings, device.ceilings):
        print(asked.__name__, json.dumps(asked("cuda"), default=str))
    for rows in _ROWS:
        for outputs, inputs in _SHAPES:
            ratio = partial_sums_ratio(rows, inputs, outputs, torch.device("cuda"))
            print(
                f"{rows} x {inputs} x {outputs}: the error of a bf16 product with bf16 partial "
                f"sums allowed is {ratio:.4f} times that without",
                flush=True,
            )
    return 0


def partial_sums_ratio(rows: int, inputs: int, outputs: int, on: torch.device) -> float:
    """The error of a bf16 product where cuBLAS may keep partial sums in bf16, over the error where
    it may not: 1 says that it does not
    (https://pytorch.org/docs/stable/notes/cuda.html, reduced precision reduction)."""
    x = torch.randn(rows, inputs, device=on, dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device=on, dtype=torch.bfloat16)
    exact = x.double() @ weight.double().T
    matmul = torch.backends.cuda.matmul
    before, errors = matmul.allow_bf16_reduced_precision_reduction, []
    try:
        for allowed in (True, False):
            matmul.allow_bf16_reduced_precision_reduction = allowed
            product = torch.nn.functional.linear(x, weight).double()
            errors.append(float((product - exact).pow(2).mean().sqrt()))
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before
    return errors[0] / errors[1]


if __name__ == "__main__":
    sys.exit(main())
