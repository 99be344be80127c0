"""Owns the rows at which trees change their mind: each split's value and its next neighbours."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from converters.importers.exchange import EXTRA_ROWS_MAX, Array

_SEED: Final = 20261124


def threshold_rows(features: Sequence[int], thresholds: Sequence[float], width: int) -> Array:
    """float32[rows, width]: per split three rows that differ in its feature; at most `EXTRA_ROWS_MAX` rows.

    All splits where they fit, else a seeded choice. Other features are normal noise, the same in the three rows.
    """
    noise = np.random.default_rng(_SEED)
    pairs = sorted(
        {(int(f), float(np.float32(t))) for f, t in zip(features, thresholds, strict=True) if np.isfinite(t)}
    )
    most = EXTRA_ROWS_MAX // 3
    if len(pairs) > most:
        pairs = [pairs[place] for place in np.sort(noise.choice(len(pairs), most, replace=False))]
    rows = np.repeat(noise.standard_normal((len(pairs), width)).astype(np.float32), 3, axis=0)
    for place, (feature, threshold) in enumerate(pairs):
        value = np.float32(threshold)
        below, above = np.nextafter(value, np.float32(-np.inf)), np.nextafter(value, np.float32(np.inf))
        rows[3 * place : 3 * place + 3, feature] = (below, value, above)
    return rows
