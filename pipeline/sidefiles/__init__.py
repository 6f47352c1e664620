"""What a release carries beside its shards: card, page, figures, contact sheets."""
