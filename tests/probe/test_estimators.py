"""Heads as scikit-learn estimators: its own checks by name, and what it is used for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from featcache.probing.estimators import AttentiveProbe, HeadProbe, HeadRegressor, LinearProbe
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import get_protocol
from featcache.store.errors import RequestError, UnknownNameError
from support.caches import make_content, make_plan, write_cache

from .caches import rich_cache, rich_plan

SHORT = replace(get_protocol("quick"), min_epochs=1, min_steps=40)
ESTIMATORS = {
    "linear": LinearProbe(protocol=SHORT, learning_rate=0.1, weight_decay=1e-4),
    "attentive": AttentiveProbe(protocol=SHORT, learning_rate=0.03, weight_decay=1e-4),
    "ridge": HeadProbe("ridge", protocol=SHORT),
    "knn": HeadProbe("knn", protocol=SHORT),
    "logreg": HeadProbe("logreg", protocol=SHORT),
    "lda": HeadProbe("lda", protocol=SHORT),
}
REGRESSOR = HeadRegressor("ridge", protocol=SHORT)
REGRESSORS = {
    "ridge": REGRESSOR,
    "linear": HeadRegressor("linear", input="standard", protocol=SHORT, learning_rate=0.03),
    "knn": HeadRegressor("knn", protocol=SHORT),
}
CHECKS = {
    "check_classifier_data_not_an_array",
    "check_classifiers_classes",
    "check_classifiers_one_label",
    "check_classifiers_regression_target",
    "check_classifiers_train",
    "check_complex_data",
    "check_dict_unchanged",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_dont_overwrite_parameters",
    "check_dtype_object",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_sparse_array",
    "check_estimator_sparse_matrix",
    "check_estimator_tags_renamed",
    "check_estimators_dtypes",
    "check_estimators_empty_data_messages",
    "check_estimators_fit_returns_self",
    "check_estimators_nan_inf",
    "check_estimators_overwrite_params",
    "check_estimators_pickle",
    "check_estimators_unfitted",
    "check_f_contiguous_array_estimator",
    "check_fit1d",
    "check_fit2d_1feature",
    "check_fit2d_1sample",
    "check_fit2d_predict1d",
    "check_fit_check_is_fitted",
    "check_fit_idempotent",
    "check_fit_score_takes_y",
    "check_get_params_invariance",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_mixin_order",
    "check_n_features_in",
    "check_n_features_in_after_fitting",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_pipeline_consistency",
    "check_readonly_memmap_input",
    "check_requires_y_none",
    "check_set_params",
    "check_supervised_y_2d",
    "check_supervised_y_no_nan",
    "check_valid_tag_types",
}
"""Of scikit-learn's own, by name; all others that the installed version makes for an estimator are passed too."""
LEFT_OUT = {
    # Needs a setting of the whole process.
    "*": {"check_array_api_input"},
}
EXPECTED_TO_FAIL = {
    # Of one sample and of many, products of float32 are rounded otherwise, and votes divide similarities by a small temperature:
    # predictions differ by 1e-6, and scikit-learn allows 1e-7.
    "knn": {"check_methods_subset_invariance"},
}
"""Of regressors."""
LABEL_SETS = {
    "check_classifiers_multilabel_representation_invariance",
    "check_classifiers_multilabel_output_format_predict",
    "check_classifiers_multilabel_output_format_predict_proba",
    "check_classifiers_multilabel_output_format_decision_function",
}


def generated(estimator):
    """The checks that scikit-learn makes for an estimator."""
    return list(estimator_checks.estimator_checks_generator(estimator))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scikit_learns_checks(name):
    ran = set()
    for estimator, check in generated(ESTIMATORS[name]):
        called = check.func.__name__
        if called in LEFT_OUT["*"] | LEFT_OUT.get(name, set()):
            continue
        check(estimator)
        ran.add(called)
    assert ran >= CHECKS
    assert (ran >= LABEL_SETS) is (name not in ("logreg", "lda")), "these two are for single labels"


@pytest.mark.parametrize("name", REGRESSORS)
def test_scikit_learns_checks_of_regressors(name):
    ran, failed = set(), set()
    for estimator, check in generated(REGRESSORS[name]):
        called = check.func.__name__
        if called in LEFT_OUT["*"]:
            continue
        try:
            check(estimator)
        except AssertionError:
            if called not in EXPECTED_TO_FAIL.get(name, ()):
                raise
            failed.add(called)
        ran.add(called)
    assert {"check_regressors_train", "check_regressor_multioutput", "check_regressors_int"} <= ran
    assert failed <= EXPECTED_TO_FAIL.get(name, set())


def test_a_whole_sweep_of_the_default_regressor_learns_what_scikit_learn_asks():
    """The checks of training scores need the steps of the default protocol: four short trainings on lengths of 1 give 0.48."""
    features, y = estimator_checks._regression_dataset()
    y = (y - y.mean()) / y.std()
    assert HeadRegressor().fit(features, y).score(features, y) > 0.5


@pytest.mark.parametrize("head", ["linear", "attentive", "ridge", "knn", "auto"])
def test_label_sets(tokens, head):
    """As scikit-learn's own take them: a column for every class, dense or sparse, sets of all sizes."""
    features, _ = tokens
    labels = np.arange(240) % 3
    sets = np.stack([labels == 0, labels != 1, labels == 9], 1).astype(int)
    sets[0, 2] = 1
    probe = HeadProbe(head, protocol=SHORT).fit(features, sets)
    predicted = probe.predict(features)
    assert predicted.dtype.kind == "i"
    assert predicted.shape == sets.shape
    assert (predicted[:, :2] == sets[:, :2]).mean() > 0.9
    probabilities = probe.predict_proba(features)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_array_equal(probabilities > 0.5, predicted)
    assert probe.decision_function(features).shape == sets.shape
    np.testing.assert_array_equal(probe.classes_, [0, 1, 2])
    if head == "ridge":
        for other in (csr_array(sets), sets.astype(bool), sets.tolist()):
            again = HeadProbe(head, protocol=SHORT).fit(features, other)
            np.testing.assert_array_equal(again.predict(features), predicted)
        assert cross_val_score(probe, features, sets, cv=2).min() > 0.8


def test_label_sets_are_refused_by_heads_of_single_labels(tokens):
    with pytest.raises(ValueError, match="head 'logreg' is for single-label targets"):
        HeadProbe("logreg", protocol=SHORT).fit(tokens[0], np.eye(3, dtype=int)[np.arange(240) % 3])


def test_two_labels_stay_two_labels(tokens):
    features, _ = tokens
    labels = np.arange(240) % 3 == 0
    probe = HeadProbe("ridge", protocol=SHORT)
    assert probe.fit(features, labels).predict_proba(features).shape == (240, 2)
    with pytest.warns(DataConversionWarning, match="column-vector"):
        assert probe.fit(features, labels[:, None]).predict_proba(features).shape == (240, 2)
    with pytest.raises(ValueError, match="1d array"):
        probe.fit(features, np.stack([labels + 1, labels + 2], 1))


FORMS = {
    "reversed": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "little-endian": lambda array: array.astype(array.dtype.newbyteorder("<")),
    "fortran": np.asfortranarray,
    "every-second": lambda array: np.repeat(array, 2, 0)[::2],
    "flipped": lambda array: (
        np.ascontiguousarray(array[::-1])[::-1]
        if array.ndim == 1
        else np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("writeable", [True, False])
def test_arrays_of_any_layout(tokens, form, dtype, writeable):
    features, labels = tokens
    features = features[:60].astype(dtype)
    given = FORMS[form](features)
    given.setflags(write=writeable)
    numbers = FORMS[form](np.arange(60.0) % 3)
    probe = HeadProbe("ridge", protocol=SHORT)
    expected = probe.fit(features, labels[:60]).predict_proba(features)
    np.testing.assert_array_equal(probe.fit(given, labels[:60]).predict_proba(given), expected)
    regressor = HeadRegressor("ridge", protocol=SHORT).fit(given, numbers)
    assert np.isfinite(regressor.predict(given)).all()
    if dtype is not np.float64:
        batch = InMemoryTokens(given.reshape(60, 6, 8)).batch(torch.arange(60))
        np.testing.assert_array_equal(
            batch, InMemoryTokens(features.reshape(60, 6, 8)).batch(torch.arange(60))
        )
    np.testing.assert_array_equal(given, features)


def test_quantities(tokens):
    features, _ = tokens
    flat = features[:, 1].reshape(240, -1).astype(np.float32)
    weights = np.random.default_rng(2).normal(size=(16, 2))
    # Tokens are divided by their length, so that is what a target can be made of.
    tokens_seen = features[:, 1].astype(np.float64)
    tokens_seen /= np.linalg.norm(tokens_seen, axis=-1, keepdims=True)
    y = 100 + 7 * tokens_seen.reshape(240, -1) @ weights
    assert cross_val_score(REGRESSOR, features[:, 1:2], y, cv=3).min() > 0.95
    one = REGRESSOR.fit(flat, y[:, 0]).predict(flat[:5])
    assert one.shape == (5,)
    # Far from zero, where float32 knows no fractions.
    far = cross_val_score(REGRESSOR, features[:, 1:2], 1e8 + y[:, :1], cv=3)
    np.testing.assert_allclose(far, cross_val_score(REGRESSOR, features[:, 1:2], y[:, :1], cv=3), atol=1e-3)


@pytest.fixture(scope="module")
def tokens():
    """240 samples of 3 layers, 2 token kinds and width 8, in three classes with names, around centres in one layer."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    features = rng.normal(size=(240, 3, 2, 8)).astype(np.float16)
    features[:, 1] += (2 * rng.normal(size=(3, 2, 8)))[labels].astype(np.float16)
    return features, np.array(["cat", "dog", "owl"])[labels]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_cross_validation_on_tokens(tokens, name):
    features, labels = tokens
    scores = cross_val_score(ESTIMATORS[name], features, labels, cv=3)
    assert scores.min() > 0.8, "chance is 1 in 3"
    fitted = ESTIMATORS[name].fit(features, labels)
    assert list(fitted.classes_) == ["cat", "dog", "owl"]
    assert set(fitted.predict(features[:10])) <= set(labels)
    np.testing.assert_allclose(fitted.predict_proba(features[:7]).sum(1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"was fitted on X of shape \['N', 3, 2, 8\], not \[240, 3, 2, 4\]"):
        fitted.predict(features[..., :4])


def test_pipeline_and_grid_search(tokens):
    features, labels = tokens
    flat = features[:, 1].reshape(240, -1)
    pipeline = make_pipeline(StandardScaler(), LinearProbe(protocol=SHORT, weight_decay=1e-4))
    search = GridSearchCV(pipeline, {"linearprobe__learning_rate": [1e-5, 0.1]}, cv=2)
    search.fit(flat, labels)
    assert search.best_params_ == {"linearprobe__learning_rate": 0.1}
    assert search.score(flat, labels) > 0.9
    # Nothing is set: the protocol is swept, and says what it chose.
    swept = LinearProbe(protocol=SHORT).fit(flat, labels)
    assert swept.chosen_["learning_rate"] in SHORT.learning_rates
    assert swept.validation_score_ > 0.5


def test_a_split_of_a_cache(tmp_path):
    plan = make_plan(width=8)
    content = make_content(plan)
    for columns in content.values():
        centres = np.random.default_rng(1).standard_normal((3, 1, 2, 8))
        for array in ("norm2", "final"):
            columns[array] = (columns[array] + 2 * centres[columns["label"]]).astype(columns[array].dtype)
    content["train"]["valid"][5:8] = False
    cache = write_cache(tmp_path / "cache", plan, content)
    probe = HeadProbe("ridge", layers="1,final", tokens="ap", protocol=SHORT).fit(cache["train"])
    features = cache["test"].load(["1", "final"], ["ap"])
    np.testing.assert_allclose(probe.predict_proba(cache["test"]), probe.predict_proba(features), atol=1e-6)
    assert probe.score(features, cache["test"].labels()) > 0.8
    assert len(probe.predict(cache["train"])) == 297, "samples without features are left out"
    # A layer set is that of the backbone, whatever of it is held.
    held = {"train": 40, "test": 10}
    few, _ = rich_cache(tmp_path / "few", rich_plan(held, groups={}, blocks=("1", "2")))
    with pytest.raises(UnknownNameError, match="unknown layer '3'"):
        HeadProbe("ridge", layers="all").fit(few["train"])
    assert HeadProbe("ridge", layers="mid+last", protocol=SHORT).fit(few["train"]).n_features_in_ == 2
    last, _ = rich_cache(tmp_path / "last", rich_plan(held, groups={}, blocks=()))
    with pytest.raises(RequestError, match="holds the final layer alone, and 'all' is asked for"):
        HeadProbe("ridge", layers="all").fit(last["train"])
    assert HeadProbe("ridge", layers="last", protocol=SHORT).fit(last["train"]).n_features_in_ == 1
    with pytest.raises(UnknownNameError, match="unknown layer '7'"):
        HeadProbe("ridge", layers="7").fit(cache["train"])
    with pytest.raises(UnknownNameError, match="unknown head 'rigde'; did you mean ridge"):
        HeadProbe("rigde").fit(features, cache["test"].labels())


@pytest.mark.parametrize(
    ("head", "given", "message"),
    [
        (
            "linear",
            {"num_heads": 3},
            "num_heads=3 is for heads with attention, such as attentive, and linear",
        ),
        (
            "ridge",
            {"learning_rate": 0.1},
            "learning_rate=0.1 is for heads that are trained, and ridge is not",
        ),
        (
            "logreg",
            {"weight_decay": 0.1},
            "weight_decay=0.1 is for heads that are trained, and logreg is not",
        ),
        ("linear", {"dropout": 0.1}, "dropout=0.1 is for heads that have one, and linear has none"),
        (
            "linear",
            {"layers": "all"},
            "layers='all' says what is read of a split of a cache, and X is an array",
        ),
        ("linear", {"input": "L2"}, "unknown input transform 'L2'; did you mean l2"),
        ("linear", {"precision": "fp16"}, "unknown precision 'fp16'"),
        ("linear", {"device": "gpu"}, "device 'gpu' cannot be used here; write cpu, cuda"),
        ("linear", {"learning_rate": -1}, "learning_rates must lie in the range above 0, not -1"),
        ("linear", {"learning_rate": "a"}, "learning_rates must be a list of numbers"),
        ("linear", {"weight_decay": float("nan")}, "weight_decays must be a list of numbers"),
        ("linear", {"protocol": replace(SHORT, eps=0)}, "eps must lie in the range above 0, not 0"),
        ("linear", {"protocol": None}, "unknown protocol 'None'"),
        ("attentive", {"num_heads": 0}, "num_heads must be a whole number from 1 on, not 0"),
        (None, {}, "unknown head 'None'"),
    ],
)
def test_parameters_without_use_are_refused(tokens, head, given, message):
    """None is passed over in silence: a search over it would compare the same head with itself."""
    features, labels = tokens
    with pytest.raises(RequestError, match=message):
        HeadProbe(head, **{"protocol": SHORT, **given}).fit(features, labels)


def test_parameters_of_numpy_and_zero_dropout_are_taken(tokens):
    features, labels = tokens
    given = {"learning_rate": np.float32(0.5), "weight_decay": np.int64(0), "dropout": 0.0}
    probe = HeadProbe("linear", protocol=SHORT, **given).fit(features, labels)
    assert probe.chosen_ == {"learning_rate": 0.5, "weight_decay": 0.0, "dropout": 0.0}


@pytest.mark.parametrize("exponent", [-300, -160, 0, 160, 300])
def test_quantities_of_any_size(tokens, exponent):
    """Squares of 1e160 are no numbers, and those of 1e-170 are 0."""
    features, _ = tokens
    flat = features.reshape(240, -1).astype(np.float32)
    plain = HeadRegressor("ridge", protocol=SHORT).fit(flat, flat[:, :2].astype(float)).predict(flat)
    scale = 2.0 ** round(exponent / np.log10(2))
    scaled = HeadRegressor("ridge", protocol=SHORT).fit(flat, flat[:, :2].astype(float) * scale).predict(flat)
    np.testing.assert_array_equal(scaled, plain * scale)


@pytest.mark.parametrize("change", [lambda x: x + 1e10, lambda x: x * 1e-60])
def test_features_that_float32_cannot_tell_apart_are_told(tokens, change):
    features, labels = tokens
    flat = features.reshape(240, -1).astype(np.float64)
    with pytest.warns(UserWarning, match="48 of 48 features lose what tells samples apart in float32"):
        HeadProbe("ridge", input="standard", protocol=SHORT).fit(change(flat), labels)


def test_features_that_only_round_are_not_warned_of(tokens, recwarn):
    features, labels = tokens
    flat = features.reshape(240, -1).astype(np.float64)
    flat[:, 0], flat[:, 1] = 14.62, 1 + 1e-16 * flat[:, 0]  # constants
    HeadProbe("ridge", input="standard", protocol=SHORT).fit(flat + 1000, labels)
    assert not recwarn.list
