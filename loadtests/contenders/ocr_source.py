# mypy: ignore-errors
# What it imports is installed in another environment only.
"""The source package's own pipeline over the sample pages: `ocr_source.py SECONDS LINES_A_BATCH THREADS PAGE...`

Runs in the environment of `rapidocr`, pinned to the core that the product gets. Prints, as JSON, each page's texts in
one untimed pass, and pages per second and CPU seconds a page of the passes that begin within SECONDS.
"""

import json
import logging
import sys
import time
from pathlib import Path


def main(arguments):
    """LINES_A_BATCH 0 leaves the package its default."""
    seconds, lines, threads, *pages = arguments
    logging.disable(logging.INFO)
    from rapidocr import RapidOCR

    params = {"EngineConfig.onnxruntime.intra_op_num_threads": int(threads)}
    if int(lines):
        params["Rec.rec_batch_num"] = int(lines)
    read = RapidOCR(params=params)
    images = {name: Path(name).read_bytes() for name in pages}
    texts = {Path(name).name: list(read(image).txts or ()) for name, image in images.items()}
    count, begun_s, cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun_s < float(seconds):
        for image in images.values():
            read(image)
            count += 1
    took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    print(json.dumps({"texts": texts, "pages_per_s": count / took_s, "cpu_s_per_page": cpu_s / count}))


if __name__ == "__main__":
    main(sys.argv[1:])
