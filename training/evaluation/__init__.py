"""Evaluation of a trained model: zero-shot, retrieval, few-shot, with intervals."""
