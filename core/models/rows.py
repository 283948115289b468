"""Some rows of a batch, as the host and as the device know them.

Shapes: K rows.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Numbers of rows in a batch, each once. index_K: the same numbers on the device.

    Both, because sending the ones to the device waits for it, and so does asking it for the others.
    """

    numbers: tuple[int, ...]
    index_K: Tensor

    def of(self, features_BND: Any) -> Any:
        """These rows' part of a model's features; None of None."""
        if features_BND is None:
            return None
        return features_BND[self.index_K] if isinstance(features_BND, Tensor) else features_BND.select(self)
