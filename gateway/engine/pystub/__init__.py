"""What a Python step finds on its path: Triton's `triton_python_backend_utils`, as far as this engine serves it."""
