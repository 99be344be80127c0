"""The verbs of the `tollway` command, one module each; `gateway.cli` mounts them."""
