"""The verbs of the `tollway` command, one module each."""
