"""Settings of corruption and objective. Import-light: the command line reads them before it needs torch or polars."""

from typing import Literal

from pydantic import Field

from core.settings import Settings

RefineScope = Literal["mistakes", "full", "response"]


class NoiseSettings(Settings):
    """How noise levels are drawn, and which positions take part. Shared by the mask and revision corruptions."""

    draws: int = Field(default=1, ge=1)
    """Training rows a sample: each has its own noise."""
    t_min: float = Field(default=1e-3, gt=0.0, le=1.0)
    """Floor of the noise level: t is uniform over (t_min, 1]. It bounds the loss weight 1/t."""
    t_sampling: Literal["stratified", "iid"] = "stratified"
    """`stratified`: the draws of a sample share (t_min, 1] out evenly; `iid`: each draw is independent."""
    fill: Literal["eos", "ignore"] = "eos"
    """`eos`: the end-of-text fill up to the response's end is corrupted and supervised, as LLaDA does; `ignore`: what
    follows the first end-of-text is padding, which neither attention nor loss sees."""


class MaskSettings(NoiseSettings):
    """How captions are masked for the mask-predict baseline."""


class RevisionSettings(NoiseSettings):
    """How captions are corrupted for ReDiff's Stage I."""

    syntax_rate: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the visible, not hallucinated tokens that are replaced at random; the official code has 0.05."""
    syntax_schedule: Literal["constant", "dynamic"] = "constant"
    """`constant`: syntax_rate at every noise level; `dynamic`: the rate is t while t is below syntax_rate."""
    replacement: Literal["exclude_original", "ordinary"] = "exclude_original"
    """Random replacements: any ordinary token but the original, or (official code) any ordinary token; a token that
    happens to be replaced by itself stays CLEAN."""
    pair_noise: Literal["forward_process", "none"] = "forward_process"
    """Rows that carry a hallucination pair: `forward_process` masks first, injects into what is visible and adds syntax
    noise (paper); `none` shows the whole changed caption without masks or syntax noise, at t = 1 (official code)."""
    pair_share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of the rows that carry a hallucination pair, among rows of samples that have one."""


class RefineSettings(Settings):
    """How revised drafts become training rows. The objective's `refine_scope` says which drafts its loss can use."""

    draws: int = Field(default=1, ge=1)
    """Training rows a draft; more than one makes sense with `input: trajectory`."""
    input: Literal["published", "trajectory"] = "published"
    """`published`: the whole draft; `trajectory`: for a share of the rows a partial state of the draft's decoding."""
    trajectory_share: float = Field(default=0.7, ge=0.0, le=1.0)
    """With `input: trajectory`, the share of rows that show a partial state; the others show the whole draft."""
    keep_partial: bool = False
    """Keep drafts of which a segment could not be aligned, where the loss covers what the expert did not name: there
    the target is known to be wrong. Under scope `mistakes` they are always kept, for there they have no loss."""


class ObjectiveSettings(Settings):
    """What the loss is made of."""

    noise_weight: Literal["inverse_t", "none", "elbo"] = "inverse_t"
    """Stage I (eq. 3): `inverse_t` weighs each kind 1/(t N_kind), `none` 1/N_kind, `elbo` 1/(t L) for masks (their
    evidence lower bound) and 1/L for visible tokens. The mask baseline (eq. 2) weighs 1/(t L), with `none` 1/L."""
    revision_scale: float = Field(default=1.0, gt=0.0)
    """Factor on the weights of Stage I rows (eq. 3). Four kinds at 1/t sum to 4 E[1/t], 16 at t_min 0.02 and 28 at
    1e-3, where a mask row (eq. 2) and a Stage II row (eq. 5) have 1 on average."""
    kind_count: Literal["row", "batch"] = "row"
    """N_kind (and N_mistake) is counted in each row (mean over rows of the row's mean), or over the batch."""
    pair_loss: Literal["all", "span"] = "all"
    """Stage I rows that show an injected hallucination: all four kinds, or (official code) the injected span alone."""
    refine_scope: RefineScope = "mistakes"
    """Stage II: `mistakes` weighs 1/N_mistake what the expert corrected, and drafts without a mistake are dropped (eq.
    5); `response` weighs every response token 1/L against the expert's text and keeps drafts without a mistake, where
    the expert is trusted to be complete; `full` is `response` on the drafts of `mistakes`."""
    grounding_weight: float = Field(default=1.0, ge=0.0)
    """Factor on the grounding loss, for models with a region head on samples with known grounding."""
