"""What a trained model knows: zero-shot, retrieval, few-shot, with intervals."""
