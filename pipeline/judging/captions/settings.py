"""The `caption` section of a config, in two halves that must not touch.

`backbone` changes what is measured: `measure_identity` belongs in the fingerprint of the measurements. `rules` and
`text` only decide over what was measured. So a moved threshold or another choice of `txt` never measures again. Pure.
"""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from manifests.contract.settings import Settings
from manifests.contract.tables import TextType
from pipeline.judging.captions.clean import STEPS
from pipeline.judging.captions.rules import PRESETS, RULE_NAMES, PresetName, Thresholds
from pipeline.judging.vocabulary.backbone import BackboneSettings

# Raise when cleaning or measuring changes what it writes. 11: species repeat their genus; a joined text stands in for
# the name of a file. 12: licences are read whole or not at all. 13: a name of an owner
# counts only where its place says that it is one.
MEASURE_VERSION = 13
MEASURED = {"language": True}  # stands in fingerprints, as when it was a setting
NGRAM_WORDS = 3  # length of the word n-grams of `repeated_ratio`
OTHERWISE = ("caption", "sentence")  # what a sample gets that has no text of its choice


class RuleSet(Thresholds):
    """Rules for the rows of some domains and sources (empty: all). A key given here overrides the preset's.

    A row is judged by the first rule set of the list that fits it.
    """

    domains: tuple[str, ...] = ()
    """Domains whose rows it judges; all when empty."""
    sources: tuple[str, ...] = ()
    """Sources whose rows it judges; all when empty."""
    preset: PresetName | None = None
    """Rules to begin with; keys given here replace its own."""

    def thresholds(self) -> dict[str, Any]:
        """Rule name to threshold, in the order in which the rules are applied; only rules that are on."""
        base = PRESETS[self.preset] if self.preset else {}
        stated = {name: getattr(self, name) for name in self.model_fields_set}
        merged = {name: stated.get(name) if name in stated else base.get(name) for name in RULE_NAMES}
        return {name: threshold for name, threshold in merged.items() if threshold not in (None, False, ())}

    def identity(self) -> dict[str, Any]:
        """Return the rules as they are applied, presets looked up, as plain values for a fingerprint."""
        thresholds = [
            [name, value.model_dump(mode="json") if isinstance(value, Settings) else value]
            for name, value in self.thresholds().items()
        ]
        return {"domains": list(self.domains), "sources": list(self.sources), "rules": thresholds}


class TextChoice(Settings):
    """The choice of `txt` for the rows of some domains and sources (empty: all).

    `txt` is one of the texts in `any_of` that the sample has; of several, one is drawn by seed and sample_id. A sample
    that has none of them gets the first of OTHERWISE that it has.
    """

    domains: tuple[str, ...] = ()
    """Domains that it is for; all when empty."""
    sources: tuple[str, ...] = ()
    """Sources that it is for; all when empty."""
    any_of: tuple[str, ...] = ("caption",)
    """Texts to choose from: caption, texts of the taxon as in `members`, and kinds that `captions` of a source join."""

    @field_validator("any_of")
    @classmethod
    def _something_to_choose(cls, any_of: tuple[str, ...]) -> tuple[str, ...]:
        if not any_of:
            raise ValueError("name at least one text")
        if len(set(any_of)) != len(any_of):
            raise ValueError("a text is named twice; name each once")
        return any_of

    def fits(self, domain: str | None, source: str | None) -> bool:
        """Return true when this choice is for rows of this domain and source."""
        return (not self.domains or domain in self.domains) and (not self.sources or source in self.sources)


class TextSettings(Settings):
    """Which text becomes the `txt` member of a shard, and which other texts are written beside it."""

    choices: tuple[TextChoice, ...] = (TextChoice(),)
    """The first that fits a row decides what its `txt` is."""
    seed: int = 0
    """Seed of the draw among several texts of `any_of`."""
    members: tuple[TextType, ...] = ()
    """Extra text members, for samples that have a taxon."""


class CaptionSettings(Settings):
    """Which captions stay, and which texts a sample gets."""

    backbone: BackboneSettings | None = None
    rules: tuple[RuleSet, ...] = (RuleSet(preset="general"),)
    text: TextSettings = TextSettings()

    def measure_identity(self) -> dict[str, Any]:
        """Return the values that the measurements depend on, plain for a fingerprint; no threshold is part of it.

        Whoever reads the backbone adds the hash of its content.
        """
        return {
            "version": MEASURE_VERSION,
            "clean": {"steps": list(STEPS)},
            "measure": {**MEASURED, "ngram_words": NGRAM_WORDS},
            "backbone": {"languages": list(self.backbone.languages)} if self.backbone else None,
        }

    def rules_identity(self) -> list[dict[str, Any]]:
        """Return the values that the verdicts depend on besides the measurements.

        The rules that are on, as plain values.
        """
        return [rules.identity() for rules in self.rules]
