"""What the services of other libraries need here: a Ray of one's own, the hub of model weights; a process to kill."""
