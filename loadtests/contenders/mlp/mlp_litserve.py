# mypy: ignore-errors
# What it imports is installed in another environment only.
"""LitServe's server for the MLP. Runs in LitServe's environment: `mlp_litserve.py MODEL PORT`."""

import sys

import litserve
import numpy as np
import onnxruntime


class Mlp(litserve.LitAPI):
    """{"x": [64 numbers]} → {"y": [10 numbers]}."""

    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        return np.array(request["x"], dtype=np.float32).reshape(1, 64)

    def predict(self, x):
        return self.session.run(None, {"x": x})[0]

    def encode_response(self, y):
        return {"y": y[0].tolist()}


if __name__ == "__main__":
    litserve.LitServer(Mlp(), accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False
    )
