"""The verb `compose`: a vision tower and a decoder become one checkpoint."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from core.errors import ConfigError
from core.models.compose import compose
from core.models.denoiser import save_denoiser
from core.models.devices import Placement
from core.models.vision import QwenVision


def write_composition(vision: Path, decoder: Path, out: Path, *, seed: int, max_pixels: int | None) -> int:
    """Write the folder `out`. Raises ConfigError if it holds something, InputError if the two cannot be composed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already: give another name, or delete it first")
    model = compose(vision, decoder, seed=seed, placement=Placement(), max_pixels=max_pixels)
    save_denoiser(model, out)
    rates = " ".join(f"--{name}.group_lr.vision_adapter 1e-3" for name in ("stage1", "stage2", "control"))
    said = (
        f"wrote {out}: its adapter knows nothing yet. Give it a rate, beside adapters of the language model too: "
        f"redraft run --config checkpoint --model.checkpoint {out} {rates}"
    )
    if isinstance(model.vision, QwenVision):
        said += (
            f"\nA large image takes {model.vision.most_positions:,} of the {model.layout.max_positions:,} positions of "
            "a prompt and its answer: --max-pixels makes that fewer"
        )
    Console(stderr=True).print(Text(said), soft_wrap=True)
    return 0
