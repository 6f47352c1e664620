"""Questions that a configuration or a work folder answers without a build. Nothing here writes into a work folder."""
