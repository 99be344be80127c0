"""What a model on disk is: config.pbtxt, recipes of the showcase models, the Triton-layout repository."""
