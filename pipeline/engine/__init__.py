"""How work is run: stages, steps and parts; publish, commit, seal; this process or Ray."""
