"""The tiny MLP as other model servers serve it. Each file runs in that server's own environment, not in ours."""
