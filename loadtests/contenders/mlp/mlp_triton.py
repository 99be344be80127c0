# mypy: ignore-errors
# What it imports is installed in another environment only.
"""Triton's Python backend for the MLP: `1/model.py` of its repository. Runs in Triton's stub."""

import os

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """x: float32[rows, 64] → y: float32[rows, 10]."""

    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            (y,) = self.session.run(None, {"x": x})
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
