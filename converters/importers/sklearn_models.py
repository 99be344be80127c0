"""Owns scikit-learn models in skops files: read without pickle, exported by skl2onnx, answered by scikit-learn itself.

One input `input: float32[batch, features]`. Outputs: classifiers `label: int64[batch]` and
`probabilities: float32[batch, classes]`; regressors `prediction: float32[batch, targets]`;
clusterers `label`; transformers `output`.
"""

import copy
import importlib.metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from converters.errors import UnsafeModel, UsageFault
from converters.importers.exchange import Array, Feeds
from converters.importers.graphs import keep_outputs
from converters.importers.protocol import Asked, Export
from converters.importers.sklearn_trees import follow_missing, histogram_model, splits
from converters.importers.thresholds import threshold_rows

INPUT: Final = "input"
_OPSETS: Final = {"": 18, "ai.onnx.ml": 3}
#: Types of scikit-learn that hold numbers and that skops leaves to be reviewed; this is the review.
_REVIEWED: Final = frozenset(
    {
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
    }
)
_KINDS: Final = ("classifier", "regressor", "clusterer", "transformer")


def open_source(asked: Asked) -> "SklearnSource":
    """Raises: UnsafeModel: the file names types that are not of scikit-learn, NumPy or SciPy."""
    import skops.io

    unreviewed = set(skops.io.get_untrusted_types(file=str(asked.source)))
    unknown = unreviewed - _REVIEWED
    if unknown:
        text = f"the file wants to load {', '.join(sorted(unknown)[:3])}, which may run any code"
        raise UnsafeModel("untrusted_types", text, next_step="save a model made of scikit-learn's own parts")
    return SklearnSource(skops.io.load(str(asked.source), trusted=sorted(unreviewed)))


class SklearnSource:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._kind = _kind(model)
        width = getattr(model, "n_features_in_", None)
        if not isinstance(width, int | np.integer):
            raise UsageFault("unfitted", "the model does not say how many features it takes", next_step="fit it first")
        self._width = int(width)
        classes = getattr(model, "classes_", None) if self._kind == "classifier" else None
        if self._kind == "classifier" and (not isinstance(classes, np.ndarray) or classes.ndim != 1):
            raise UsageFault("multi_output", "classifiers of several targets are not read", next_step="save one each")
        #: Labels that are no whole numbers leave as their place among the classes.
        self._names = classes if classes is not None and classes.dtype.kind not in "iu" else None
        self._classes = classes

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("scikit-learn", "skl2onnx", "skops", "onnx")}

    def export(self, path: Path) -> Export:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType

        model = self._model if self._names is None else _with_numbers(self._model, len(self._names))
        # Classifiers without probabilities have no such option: they give no map.
        options = {id(model): {"zipmap": False}} if "probabilities" in self._outputs() else None
        types = [(INPUT, FloatTensorType([None, self._width]))]
        if hasattr(self._model, "_predictors"):
            onnx.save_model(histogram_model(self._model, self._kind, self._width, self._classes), str(path))
            return Export(
                method="the histogram trees as one operator", classes=self._class_names(), extra=self._extra()
            )
        made = skl2onnx.to_onnx(model, initial_types=types, target_opset=_OPSETS, options=options)
        notes = follow_missing(made, self._model)
        keep_outputs(made, dict(zip((one.name for one in made.graph.output), self._outputs(), strict=False)))
        made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        for output in made.graph.output:
            output.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.save_model(made, str(path))
        return Export(
            method="skl2onnx, labels and probabilities as tensors",
            notes=notes,
            classes=self._class_names(),
            extra=self._extra(),
        )

    def _class_names(self) -> tuple[str, ...]:
        return () if self._names is None else tuple(str(name) for name in self._names)

    def _outputs(self) -> tuple[str, ...]:
        if self._kind == "classifier":
            return ("label", "probabilities") if hasattr(self._model, "predict_proba") else ("label",)
        return {"regressor": ("prediction",), "clusterer": ("label",), "transformer": ("output",)}[self._kind]

    def _extra(self) -> tuple[Feeds, ...]:
        features, thresholds = splits(self._model)
        rows = threshold_rows(features, thresholds, self._width)
        return ({INPUT: rows},) if len(rows) else ()

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        x = feeds[INPUT]
        if self._kind == "transformer":
            found = self._model.transform(x)
            return {"output": np.asarray(found.todense() if hasattr(found, "todense") else found)}
        predicted = np.asarray(self._model.predict(x))
        if self._kind == "regressor":
            return {"prediction": predicted.reshape(len(x), -1)}
        if self._names is not None:
            predicted = np.searchsorted(self._names, predicted)
        answers = {"label": predicted.astype(np.int64)}
        if "probabilities" in self._outputs():
            answers["probabilities"] = np.asarray(self._model.predict_proba(x))
        return answers


def _kind(model: Any) -> str:
    from sklearn.base import is_classifier, is_clusterer, is_regressor

    for kind, is_one in (("classifier", is_classifier), ("regressor", is_regressor), ("clusterer", is_clusterer)):
        if is_one(model):
            return kind
    if hasattr(model, "transform"):
        return "transformer"
    text = f"{type(model).__name__} is none of {', '.join(_KINDS)}"
    raise UsageFault("estimator", text, next_step="save an estimator of one of these kinds")


def _with_numbers(model: Any, count: int) -> Any:
    """A copy whose labels are 0, 1, 2 …, as strings are no tensors that engines serve."""
    numbered = copy.deepcopy(model)
    last = numbered.steps[-1][1] if hasattr(numbered, "steps") else numbered
    last.classes_ = np.arange(count, dtype=np.int64)
    return numbered
