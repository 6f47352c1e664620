"""Shards in, a trained DALIP model and its evaluation out: the `dalip` command."""

from importlib.util import find_spec
from pathlib import Path

# `dalip` never looks where the user stands. A notebook does: a package `manifests` beside it comes before ours.
_found = find_spec("manifests")
if _found and _found.origin and Path(_found.origin).parent.parent != Path(__file__).parent.parent:
    raise ImportError(
        f"{Path(_found.origin).parent} hides PlantMix's own package `manifests`; rename that folder, or start Python "
        "in another one"
    )
