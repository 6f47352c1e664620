"""Files that a release carries beside its shards: card, page, figures."""
