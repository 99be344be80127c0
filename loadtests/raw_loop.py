"""The ceiling for the engine: a tight loop of `session.run` on one thread. `raw_loop.py MODEL SECONDS BATCH...`

Prints {"BATCH": [items per second, items per second of CPU]} as JSON. Run it pinned to the core that the engine gets.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort


def items_per_s(session: "ort.InferenceSession", batch: int, seconds: float) -> tuple[float, float]:
    """Run for `seconds` after one warm-up call. x: float32[batch, ...] with the model's own trailing axes."""
    model_input = session.get_inputs()[0]
    feed = {model_input.name: np.zeros((batch, *model_input.shape[1:]), dtype=np.float32)}
    session.run(None, feed)
    count, start, cpu_start = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        session.run(None, feed)
        count += batch
    return count / elapsed, count / (time.process_time() - cpu_start)


def main(arguments: Sequence[str]) -> None:
    """Measure each batch size in turn."""
    model, seconds, *batches = arguments
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(Path(model), options, providers=["CPUExecutionProvider"])
    print(json.dumps({batch: items_per_s(session, int(batch), float(seconds)) for batch in batches}))


if __name__ == "__main__":
    main(sys.argv[1:])
