"""The packages that the project runs with, the releases of them that it supports, and what each is
for."""

from __future__ import annotations

import re
from dataclasses import dataclass

EVERYTHING = "every profile"
"""What a package is for, where nothing can be assessed without it."""
STREAMING = "profiles scale and gpu"
BENCHMARKS = "benchmarks"
TOKENIZERS = "building tokenizers of the hub"
SIGNATURES = "signed certificates"
KERNELS = "flash attention in profile gpu"

PYTHON = (3, 10)
"""The oldest supported Python."""


@dataclass(frozen=True)
class Package:
    """A distribution, the module that it is imported as, and its supported releases: `least` and
    newer, older than `below`."""

    name: str
    module: str
    least: str | None
    below: str | None = None
    used_for: str = EVERYTHING
    on_torch: bool = False
    """Whether importing it imports torch, and so fails or hangs where torch does."""

    @property
    def required(self) -> bool:
        """Whether nothing can be assessed without it."""
        return self.used_for == EVERYTHING

    @property
    def range(self) -> str:
        """The supported releases, as pip spells them; empty where any will do."""
        return ",".join(
            sign + bound for sign, bound in ((">=", self.least), ("<", self.below)) if bound
        )

    @property
    def requirement(self) -> str:
        """What to ask pip for, quoted for a shell."""
        return f'"{self.name}{self.range}"' if self.range else self.name

    def supports(self, version: str) -> bool:
        """Whether a release is in the range; one that cannot be read is given the benefit of the
        doubt."""
        found = _release(version)
        if not found:
            return True
        too_old = self.least is not None and found < _release(self.least)
        too_new = self.below is not None and found >= _release(self.below)
        return not (too_old or too_new)


PACKAGES = (
    Package("torch", "torch", "2.2"),
    Package("transformers", "transformers", "4.40", "6", on_torch=True),
    Package("tokenizers", "tokenizers", "0.19"),
    Package("safetensors", "safetensors", "0.4.1"),
    Package("huggingface-hub", "huggingface_hub", "0.23"),
    Package("hypothesis", "hypothesis", "6.100"),
    Package("numpy", "numpy", "1.24"),
    Package("packaging", "packaging", "23"),
    Package("typer", "typer", "0.12"),
    Package("rich", "rich", "13"),
    Package("jinja2", "jinja2", "3.1"),
    Package("accelerate", "accelerate", "0.27", used_for=STREAMING, on_torch=True),
    Package("mistral-common", "mistral_common", "1.5", used_for=TOKENIZERS),
    Package("sentencepiece", "sentencepiece", "0.2", used_for=TOKENIZERS),
    Package("pytest", "pytest", "8", used_for=BENCHMARKS),
    Package("pytest-benchmark", "pytest_benchmark", "5", used_for=BENCHMARKS),
    Package("matplotlib", "matplotlib", "3.7", used_for=BENCHMARKS),
    Package("mpmath", "mpmath", "1.3", used_for=BENCHMARKS),
    Package("securesystemslib", "securesystemslib", None, used_for=SIGNATURES),
    Package("flash-attn", "flash_attn", "2", used_for=KERNELS, on_torch=True),
)
"""In the order in which they are listed. `pyproject.toml` asks for the same releases."""


def named(name: str) -> Package:
    """The package of this name."""
    return next(package for package in PACKAGES if package.name == name)


def _release(version: str) -> list[int]:
    """The numbers of a release, without pre-release and local parts: `2.13.0+cpu` is 2.13.0.
    `packaging` would do it, and may itself be missing."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    found = [int(part) for part in numbers[0].split(".")] if numbers else []
    while found and found[-1] == 0:
        found.pop()
    return found
