"""Services of other libraries: a Ray of one's own, the hub of model weights; a process to kill."""
