"""The engine of stages, steps and parts: publish, commit, seal; in this process or on Ray."""
