"""Owns what the quantiser is given: the model's normal form and the calibration rows, and nothing of the judged ones.

Written by our limited child into `work/quantise/`: `model.onnx`, `rows.npz` and `index.json` (names of the inputs, how
many rows, whether a row is one of a batch). Read by the toolchain's child.
"""

from pathlib import Path
from typing import Any

from converters.build import open_reference
from converters.importers.exchange import write_arrays, write_index
from converters.job import Job
from converters.nncf.quantise import FOLDER, MODEL, ROWS
from converters.normalise import load_whole, normalise, save_model
from converters.probe import probe_onnx
from converters.samples import read_data
from converters.signature import read_signature
from converters.verify import observe


def write_given(job: Job, source: Path, data: Path, work: Path) -> dict[str, Any]:
    """Fill `work/quantise/`. Returns the number of rows.

    Raises:
        ConvertError: as a conversion of the same source and data would.
    """
    whole = load_whole(probe_onnx(source), source.parent)
    signature = observe(read_signature(whole), open_reference(whole, source), job)
    # The same split as the gate's: by the same seed, from the same file.
    given = read_data(data, signature, job.seed, labels=job.labels)
    folder = work / FOLDER
    folder.mkdir()
    save_model(normalise(whole), folder / MODEL)
    names = sorted(given.calibration)
    write_arrays(folder / ROWS, names, given.calibration)
    index = {"inputs": names, "rows": given.rows_calibration, "is_batched": signature.batch_axis is not None}
    write_index(folder, index)
    return {"rows": given.rows_calibration}
