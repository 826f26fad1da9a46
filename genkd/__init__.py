"""GenKD node: distil a private teacher into a small student without any data.

    import genkd
    report = genkd.distill(teacher="model.safetensors", student="resnet8-half", out="runs/first")

Importing this package loads nothing heavy: verifying a student must not load torch. The functions
that need torch are fetched on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "distill"]

if TYPE_CHECKING:
    from genkd.distillation import distill


def __getattr__(name: str) -> Any:  # Any: a module attribute may be of any type
    if name == "distill":
        from genkd.distillation import distill

        return distill
    raise AttributeError(f"module 'genkd' has no attribute {name!r}")
