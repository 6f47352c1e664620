"""The `score` section of a config: which scorers run, and the thresholds over their stored scores.

What a score is (model, weights, precision, options) and what is decided over it (rules) never touch. Pure.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from manifests.contract.settings import JsonValues, NameOrPath, Settings

CLIP = "clip"  # name of the scorer that `model` and `pretrained` stand for

ScorerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class PluginSettings(Settings):
    """A scorer of your own: a class with `name`, `load` and `score`; see pipeline/scoring/README.md."""

    scorer: str = Field(pattern=r"^[\w.]+:\w+$")
    """module:Class, importable where the parts run."""
    name: ScorerName
    """Its name in rules, in the table of scores and in drop reasons."""
    options: JsonValues = Field(default_factory=dict)
    """Keyword arguments of the class."""
    batch_size: int = Field(64, ge=1)
    """Images that it scores at a time."""


class ScoreRule(Settings):
    """A threshold over one stored score, exactly one of the three, and what becomes of a picture that fails it."""

    scorer: ScorerName = CLIP
    """Name of the scorer."""
    min_score: float | None = None
    """Drop what scores less."""
    max_score: float | None = None
    """Drop what scores more."""
    min_quantile: float | None = Field(None, gt=0, lt=1)
    """Drop scores below this quantile of the domain."""
    domains: list[str] | None = None
    """Domains that the rule applies to; all when absent."""
    action: Literal["drop", "blur", "flag"] = "drop"
    """drop: it is left out. blur: the release holds it with every box above `max_score` blurred. flag: it is packed as
    it is. `marks` of its json and of samples.parquet says what was blurred or flagged; the pool keeps the original."""

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        thresholds = (self.min_score, self.max_score, self.min_quantile)
        if sum(value is not None for value in thresholds) != 1:
            raise ValueError("give exactly one of min_score, max_score and min_quantile")
        if self.action == "blur" and self.max_score is None:
            raise ValueError("action: blur needs max_score: boxes above it are blurred")
        return self


class ScoreSettings(Settings):
    """Scores of image and text; off unless a model or a plug-in is named."""

    model: NameOrPath | None = None
    """open_clip architecture, e.g. ViT-B-32, or path of its json config."""
    pretrained: NameOrPath | None = None
    """open_clip tag or path of local weights."""
    batch_size: int = Field(64, ge=1)
    """Pictures scored at a time."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the numbers of the model."""
    device: str = "cpu"
    """cpu, or cuda (every worker takes one GPU)."""
    plugins: list[PluginSettings] = Field(default_factory=list)
    rules: list[ScoreRule] = Field(default_factory=list)

    @property
    def scorers(self) -> list[str]:
        """Names of the scorers that run."""
        return [*([CLIP] if self.model else []), *(plugin.name for plugin in self.plugins)]

    @model_validator(mode="after")
    def _scorers_fit(self) -> Self:
        if self.model and not self.pretrained:
            raise ValueError("score.pretrained is needed with score.model: scores of random weights mean nothing")
        names = [CLIP, *(plugin.name for plugin in self.plugins)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"score.plugins: the name {', '.join(twice)} is taken twice; '{CLIP}' is score.model's")
        for rule in self.rules:
            if rule.scorer == CLIP and not self.model:
                raise ValueError("score.rules need score.model: without a model there is no score")
            if rule.scorer not in self.scorers:
                raise ValueError(f"score.rules: no scorer '{rule.scorer}'; there are {', '.join(self.scorers)}")
        return self
