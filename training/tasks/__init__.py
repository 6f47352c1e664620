"""What a model is trained to do: a task is a loss, the columns that it needs, and how a held-out pair is judged."""
