"""Lets torchvision's CUDA wheel be imported beside torch's CPU build; install.sh puts this where Python starts.

The wheel's compiled part cannot be loaded there, and its Python part then fails on operators that nobody declared.
Declared without an implementation they are enough for what image processors use: the transforms in plain torch.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_TWICE = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_OPERATORS = ("nms", "qnms", *_TWICE, *(f"_{name}_backward" for name in _TWICE))


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing itself: it declares the operators when torchvision is about to be imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Called for every import."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch  # not at the start of every Python process

            for name in _OPERATORS:
                torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
