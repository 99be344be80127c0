"""What runs inside a framework's own environment: reading its models, exporting them, and giving its own answers."""
