"""Owns label files and the classification extension: the k largest scores of an output as "value:index[:label]"."""

from typing import Final

import numpy as np

from gateway.engine.tensors import Array, invalid
from model_repo.config import ModelConfig
from model_repo.errors import RepositoryError
from model_repo.repository import ModelFolder, read_member

_LABEL_BYTES_MAX: Final = 4 << 20


def read_labels(folder: ModelFolder, config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Output name → labels by index, one a line, for outputs that name a label file.

    Raises:
        RepositoryError: a file is missing or no UTF-8 text.
    """
    labels = {}
    for spec in config.outputs:
        if spec.label_filename:
            data = read_member(folder, spec.label_filename, bytes_max=_LABEL_BYTES_MAX)
            try:
                labels[spec.name] = tuple(data.decode().splitlines())
            except UnicodeDecodeError as error:
                raise RepositoryError(f"{spec.label_filename}: is not UTF-8 text") from error
    return labels


def classify(name: str, array: Array, count: int, labels: tuple[str, ...], *, has_batch_axis: bool) -> Array:
    """classes: bytes[rows, k] (bytes[k] without a batch axis), best first, k ≤ `count` and ≤ the number of scores.

    Raises:
        TollwayError: invalid_tensor, for an output that is not numeric.
    """
    if array.dtype.hasobject or array.dtype.kind == "b":
        raise invalid(f"output '{name}' is not numeric and cannot be classified")
    scores = array.reshape(array.shape[0], -1) if has_batch_axis else array.reshape(1, -1)
    count = min(count, scores.shape[1])
    best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :count]
    classes = np.empty(best.shape, dtype=object)
    for row in range(best.shape[0]):
        for place in range(count):
            index = int(best[row, place])
            label = f":{labels[index]}" if index < len(labels) else ""
            classes[row, place] = f"{float(scores[row, index]):f}:{index}{label}".encode()
    return classes if has_batch_axis else classes[0]
