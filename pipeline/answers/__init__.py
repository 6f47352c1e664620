"""What a configuration or a work folder can tell without a build. Nothing here writes into a work folder."""
