"""TensorRT and TensorRT-RTX: typed graphs compiled into plans for one kind of GPU, which nothing here has run."""
