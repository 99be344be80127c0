"""scikit-learn, XGBoost and LightGBM: exact at every split, with missing values; labels and probabilities."""

from pathlib import Path

import pytest

from converters.errors import UnsafeModel, UsageFault
from tests.toolchains.conftest import Convert, Make

pytestmark = [pytest.mark.toolchains, pytest.mark.timeout(1800)]
SKLEARN = """
import numpy as np, skops.io
from sklearn.cluster import KMeans
from sklearn.datasets import make_classification
from sklearn.ensemble import *
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
x, y = make_classification(500, 12, n_informative=8, n_classes=3, random_state=0)
x = x.astype("f")
holes = x.copy()
holes[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
names = np.array(["cat", "dog", "emu"])[y]
target = x[:, 0] * 2 + x[:, 1]
models = {
    "forest": RandomForestClassifier(20, max_depth=6, random_state=0).fit(x, names),
    "forest_holes": RandomForestClassifier(9, max_depth=6, random_state=0).fit(holes, y * 10 - 5),
    "tree": DecisionTreeClassifier(max_depth=5, random_state=0).fit(x, y),
    "boosted": GradientBoostingRegressor(n_estimators=20, random_state=0).fit(x, target),
    "histogram": HistGradientBoostingClassifier(max_iter=10, random_state=0).fit(holes, y * 10 - 5),
    "histogram_two": HistGradientBoostingClassifier(max_iter=10, random_state=0).fit(holes, names == "cat"),
    "histogram_regression": HistGradientBoostingRegressor(max_iter=10, random_state=0).fit(holes, target),
    "histogram_poisson": HistGradientBoostingRegressor(max_iter=5, loss="poisson").fit(holes, abs(target)),
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y),
    "clusters": KMeans(4, random_state=0, n_init=2).fit(x),
    "scaler": StandardScaler().fit(x),
    "labels_only": LinearSVC().fit(x, names),
}
for name, model in models.items():
    skops.io.dump(model, f"{name}.skops")
class Own(StandardScaler):
    pass
skops.io.dump(Own().fit(x), "own.skops")
skops.io.dump(make_pipeline(FunctionTransformer(eval), StandardScaler()), "function.skops")
"""
CASES = {
    "forest": ("label", "probabilities"),
    "forest_holes": ("label", "probabilities"),
    "tree": ("label", "probabilities"),
    "boosted": ("prediction",),
    "histogram": ("label", "probabilities"),
    "histogram_two": ("label", "probabilities"),
    "histogram_regression": ("prediction",),
    "histogram_poisson": ("prediction",),
    "pipeline": ("label", "probabilities"),
    "clusters": ("label",),
    "scaler": ("output",),
    "labels_only": ("label",),
}


@pytest.fixture(scope="module")
def sklearn(make: Make) -> Path:
    return make("sklearn", SKLEARN)


@pytest.mark.parametrize("name", CASES)
def test_a_scikit_learn_model_answers_as_scikit_learn_does(name: str, sklearn: Path, to_version: Convert) -> None:
    report = to_version(sklearn / f"{name}.skops")
    assert report["interface"]["batch"] == "batch"
    assert tuple(one[0] for one in report["interface"]["outputs"]) == CASES[name]
    is_named = name in {"forest", "labels_only"}
    assert report["source"]["classes"] == (
        ["cat", "dog", "emu"] if is_named else ["False", "True"] if name == "histogram_two" else []
    )
    has_splits = name in {"forest", "forest_holes", "tree", "boosted"} or name.startswith("histogram")
    # 11 generated kinds and batches, one with missing values if the model takes those, one of rows at the splits.
    assert report["source"]["export"]["cases"] >= 11 + has_splits


@pytest.mark.parametrize("name", ["own", "function"])
def test_a_file_that_loads_other_types_is_refused(name: str, sklearn: Path, to_version: Convert) -> None:
    with pytest.raises(UnsafeModel) as refused:
        to_version(sklearn / f"{name}.skops")
    assert refused.value.rule == "untrusted_types"


BOOSTED = """
import numpy as np
noise = np.random.default_rng(0)
x = noise.standard_normal((600, 10)).astype("f")
x[noise.random(x.shape) < 0.05] = np.nan
full = np.nan_to_num(x)
two = (full[:, 0] + full[:, 1] ** 2 > 0.5).astype(int)
three = np.digitize(full[:, 0], [-0.5, 0.5])
number = full[:, 0] * 3 + 1
"""
XGBOOST = """
import xgboost as xgb
for name, objective, y, more in [
    ("binary", "binary:logistic", two, {}),
    ("multi", "multi:softmax", three, {"num_class": 3}),
    ("regression", "reg:squarederror", number, {}),
    ("logistic", "reg:logistic", two, {}),
    ("poisson", "count:poisson", abs(number), {}),
    ("dart", "binary:logistic", two, {"booster": "dart", "rate_drop": 0.3}),
    ("parallel", "multi:softprob", three, {"num_class": 3, "num_parallel_tree": 2, "subsample": 0.7}),
    ("linear", "reg:squarederror", number, {"booster": "gblinear"}),
]:
    booster = xgb.train({"objective": objective, "max_depth": 4, "seed": 0, **more}, xgb.DMatrix(x, y), 12)
    booster.save_model(f"{name}.json")
    booster.save_model(f"{name}.ubj")
category = xgb.DMatrix(np.random.default_rng(0).integers(0, 5, (600, 1)).astype("f"), two, feature_types=["c"],
                       enable_categorical=True)
xgb.train({"objective": "binary:logistic", "max_cat_to_onehot": 1}, category, 3).save_model("category.json")
"""
LIGHTGBM = """
import lightgbm as lgb
for name, objective, y, more in [
    ("binary", "binary", two, {}),
    ("slope", "binary", two, {"sigmoid": 2.0}),
    ("multi", "multiclass", three, {"num_class": 3}),
    ("regression", "regression", number, {}),
    ("poisson", "poisson", abs(number), {}),
    ("forest", "regression", number, {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.7}),
    ("zero", "binary", two, {"zero_as_missing": True}),
    ("linear", "regression", number, {"linear_tree": True}),
]:
    data = lgb.Dataset(x if name != "zero" else full, y)
    booster = lgb.train({"objective": objective, "num_leaves": 9, "verbose": -1, "seed": 0, **more}, data, 12)
    booster.save_model(f"{name}.txt")
lgb.train({"objective": "binary", "num_leaves": 9, "verbose": -1}, lgb.Dataset(full, two), 12).save_model("full.txt")
category = lgb.Dataset(np.random.default_rng(0).integers(0, 9, (600, 2)).astype("f"), two, categorical_feature=[0])
lgb.train({"objective": "binary", "verbose": -1, "min_data_per_group": 1}, category, 3).save_model("category.txt")
"""


@pytest.fixture(scope="module")
def xgboost(make: Make) -> Path:
    return make("xgboost", BOOSTED + XGBOOST)


@pytest.fixture(scope="module")
def lightgbm(make: Make) -> Path:
    return make("lightgbm", BOOSTED + LIGHTGBM)


@pytest.mark.parametrize("name", ["binary", "multi", "regression", "logistic", "poisson", "dart", "parallel"])
def test_an_xgboost_model_answers_as_xgboost_does(name: str, xgboost: Path, to_version: Convert) -> None:
    report = to_version(xgboost / f"{name}.{'ubj' if name == 'binary' else 'json'}")
    # All 13: missing values, and rows at the splits, too.
    assert (report["source"]["export"]["cases"], report["source"]["answers"]["refused"]) == (13, 0)


@pytest.mark.parametrize("name", ["binary", "slope", "multi", "regression", "poisson", "forest", "full"])
def test_a_lightgbm_model_answers_as_lightgbm_does(name: str, lightgbm: Path, to_version: Convert) -> None:
    report = to_version(lightgbm / f"{name}.txt")
    assert (report["source"]["export"]["cases"], report["source"]["answers"]["refused"]) == (13, 0)


@pytest.mark.parametrize(
    ("library", "name", "rule"),
    [
        ("xgboost", "linear.json", "booster"),
        ("xgboost", "category.json", "categorical"),
        ("lightgbm", "zero.txt", "zero_missing"),
        ("lightgbm", "linear.txt", "linear"),
        ("lightgbm", "category.txt", "categorical"),
    ],
)
def test_what_is_not_written_is_said_by_name(
    library: str, name: str, rule: str, request: pytest.FixtureRequest, to_version: Convert
) -> None:
    with pytest.raises(UsageFault) as refused:
        to_version(request.getfixturevalue(library) / name)
    assert refused.value.rule == rule
