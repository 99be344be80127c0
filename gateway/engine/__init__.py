"""The embedded Open Inference Protocol server."""
