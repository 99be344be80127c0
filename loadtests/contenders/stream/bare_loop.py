"""The ceiling for streams: 64 generators in turn in one process. `bare_loop.py SECONDS STREAMS`

Prints tokens per second, and per second of CPU, as JSON. Run it pinned to the core that the server gets.
"""

import json
import sys
import time
from collections.abc import Sequence

from speaker import Speaker  # type: ignore[import-not-found,unused-ignore]


def main(arguments: Sequence[str]) -> None:
    """Take a token of each generator in turn until time is up."""
    seconds, streams = float(arguments[0]), int(arguments[1])
    speaker = Speaker()
    generators = [speaker.speak(1 << 30, seed) for seed in range(streams)]
    for generator in generators:
        next(generator)
    count, begun_s, begun_cpu_s = 0, time.perf_counter(), time.process_time()
    while (took_s := time.perf_counter() - begun_s) < seconds:
        for generator in generators:
            next(generator)
        count += streams
    print(json.dumps([count / took_s, count / (time.process_time() - begun_cpu_s)]))


if __name__ == "__main__":
    main(sys.argv[1:])
