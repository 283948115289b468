"""The processor threads of a task."""

import torch


def use_threads(count: int) -> None:
    """Use `count` threads for tensor work from here on, in this thread of the process."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
