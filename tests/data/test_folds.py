import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtl_jax.data import folds, pipeline
from mtl_jax.data.folds import Fold
from mtl_jax.errors import UserError

pytest_plugins = ("training_fixtures",)

classes_lists = st.lists(st.sampled_from([-1, 0, 1]), min_size=2, max_size=60)


def names_of(classes):
    return [f"eye{i}" for i in range(len(classes))]


@given(classes_lists, st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_folds_are_even_in_size_and_in_every_class(classes, num_folds, seed):
    found = folds.assign(names_of(classes), classes, num_folds, seed)
    assert set(found) <= set(range(num_folds))
    groups = [np.ones(len(classes), bool)]
    groups += [np.asarray(classes) == c for c in set(classes)]
    for group in groups:
        assert np.ptp(np.bincount(found[group], minlength=num_folds)) <= 1


@given(classes_lists, st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(classes, random):
    images = list(zip(names_of(classes), classes, strict=True))
    expected = dict(
        zip(
            names_of(classes),
            folds.assign(*zip(*images, strict=True), 3, 5),
            strict=True,
        )
    )
    random.shuffle(images)
    names, shuffled = zip(*images, strict=True)
    found = folds.assign(names, shuffled, 3, 5)
    assert dict(zip(names, found, strict=True)) == expected


@given(classes_lists, st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_without_patients_images_are_dealt_like_cards(classes, num_folds, seed):
    """One stratum after another, in an order drawn by lot."""
    names = names_of(classes)
    lot = np.random.RandomState(seed).permutation(len(names))
    rank = dict(zip(sorted(names), lot, strict=True))
    order = sorted(range(len(names)), key=lambda i: (classes[i], rank[names[i]]))
    expected = np.empty(len(names), int)
    expected[order] = np.arange(len(names)) % num_folds
    for patients in (None, [""] * len(names), [f"owner of {name}" for name in names]):
        found = folds.assign(names, classes, num_folds, seed, patients)
        np.testing.assert_array_equal(found, expected)


patients_lists = st.lists(
    st.tuples(st.sampled_from([-1, 0, 1]), st.integers(-4, 20)),
    min_size=2,
    max_size=60,
)


@given(
    patients_lists,
    st.integers(2, 7),
    st.integers(0, 2**32 - 1),
    st.sampled_from(folds.KINDS),
    st.randoms(),
)
def test_a_patient_is_in_one_fold(images, num_folds, seed, kind, random):
    """A negative number stands for an unknown patient."""
    classes, numbers = zip(*images, strict=True)
    eyes = {
        name: (c, "" if n < 0 else f"patient {n}")
        for name, c, n in zip(names_of(classes), classes, numbers, strict=True)
    }

    def fold_of(names):
        found = {}
        for number in range(num_folds):
            fold = Fold(number, num_folds, seed, kind)
            train, validation = fold.divide(names, *map(list, columns_of(names)))
            assert sorted([*train, *validation]) == list(range(len(names)))
            assert not {eyes[names[i]][1] for i in train} & {
                eyes[names[i]][1] for i in validation
            } - {""}
            found |= {names[i]: number for i in validation}
        return found

    def columns_of(names):
        return zip(*(eyes[name] for name in names), strict=True)

    names = list(eyes)
    found = fold_of(names)
    assert set(found) == set(names)
    random.shuffle(names)
    assert fold_of(names) == found


@given(st.lists(st.sampled_from([0, 1]), min_size=10, max_size=40), st.integers(0, 99))
def test_pairs_of_eyes_are_spread_evenly(diagnoses, seed):
    """Both eyes of each patient have one diagnosis."""
    classes = np.repeat(diagnoses, 2)
    patients = [f"patient {i // 2}" for i in range(len(classes))]
    found = folds.assign(names_of(classes), classes, 5, seed, patients)
    for group in (classes == 0, classes == 1, classes >= 0):
        assert np.ptp(np.bincount(found[group], minlength=5)) <= 2


def test_every_image_is_held_out_once_and_trained_on_otherwise():
    classes = [0] * 23 + [1] * 8
    divided = [Fold(i, 5, 3).divide(names_of(classes), classes) for i in range(5)]
    held_out = np.concatenate([validation for _, validation in divided])
    assert sorted(held_out) == list(range(31))
    for train, validation in divided:
        assert sorted([*train, *validation]) == list(range(31))
        assert (np.diff(train) > 0).all()


def test_the_seed_shuffles():
    classes = [0] * 40
    found = [folds.assign(names_of(classes), classes, 5, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).sum() > 20
    # Not in the order of the names.
    assert (found[0] != np.arange(40) % 5).sum() > 20


def test_the_folds_are_these_on_every_machine():
    found = folds.assign(names_of(range(10)), [0] * 7 + [1] * 3, 5, 0)
    assert found.tolist() == [1, 0, 2, 1, 0, 3, 4, 3, 2, 4]


def held_out_by(kind, names, classes, num_folds=5, seed=0):
    """The names that each fold validates on."""
    divided = [
        Fold(i, num_folds, seed, kind).divide(names, classes) for i in range(num_folds)
    ]
    return [{names[place] for place in validation} for _, validation in divided]


@given(classes_lists, st.integers(2, 7), st.integers(0, 2**32 - 1), st.randoms())
def test_shuffled_folds_are_even_in_size_whatever_order_and_class(
    classes, num_folds, seed, random
):
    names = names_of(classes)
    found = held_out_by("shuffled", names, classes, num_folds, seed)
    sizes = [len(fold) for fold in found]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(name for fold in found for name in fold) == sorted(names)
    random.shuffle(names)
    # The classes, in another order than the names now, say nothing to it.
    assert held_out_by("shuffled", names, classes, num_folds, seed) == found


def test_shuffled_folds_have_glaucomas_by_chance():
    """The hypergeometric distribution, which no stratified fold has."""
    classes = [0] * 720 + [1] * 80
    names = names_of(classes)
    counts = {
        kind: [
            sum(int(name.removeprefix("eye")) >= 720 for name in fold)
            for seed in range(40)
            for fold in held_out_by(kind, names, classes, 5, seed)
        ]
        for kind in folds.KINDS
    }
    assert set(counts["stratified"]) == {16}
    expected = stats.hypergeom(800, 80, 160)
    assert np.mean(counts["shuffled"]) == 16
    assert np.std(counts["shuffled"]) == pytest.approx(expected.std(), rel=0.2)


def test_the_shuffled_folds_are_these_on_every_machine():
    found = held_out_by("shuffled", names_of(range(10)), [0] * 7 + [1] * 3)
    # The ranks that RandomState(0) gives eye0 to eye9: 2 8 4 9 1 6 7 3 0 5.
    assert [sorted(fold) for fold in found] == [
        ["eye8", "eye9"],
        ["eye4", "eye5"],
        ["eye0", "eye6"],
        ["eye1", "eye7"],
        ["eye2", "eye3"],
    ]


@pytest.fixture(scope="module")
def builder(synthetic_data):
    return pipeline.open_dataset(*synthetic_data)


def test_splits_of_a_fold(builder):
    """13 and 6 images with six and three of glaucoma, merged and divided by 4."""
    official = [pipeline.open_split(builder, s) for s in ("train", "validation")]
    merged = [name for table in official for name in table.image_ids()]
    images = {
        name: image.tobytes()
        for table in official
        for name, image in zip(
            table.image_ids(), table.take(range(len(table)))["image"], strict=True
        )
    }
    seen = []
    for number in range(4):
        fold = Fold(number, 4)
        train, validation = pipeline.open_training_splits(builder, fold)
        names = train.image_ids(), validation.image_ids()
        assert sorted([*names[0], *names[1]]) == sorted(merged)
        assert len(validation) in (4, 5)
        assert sum(validation.diagnoses()) in (2, 3)
        seen += names[1]
        alone = pipeline.open_split(builder, "validation", fold)
        assert alone.image_ids() == names[1]
        for table in (train, validation):
            batch = table.take(range(len(table)))
            for i, name in enumerate(table.image_ids()):
                assert batch["image"][i].tobytes() == images[name]
                assert batch["glaucoma"][i] == table.diagnoses()[i]
                assert table.details(i)["image_id"] == name
                np.testing.assert_array_equal(
                    table.native(i, ["disc"])["disc_mask"], batch["disc_mask"][i]
                )
        assert f"fold {number} of 4, validation" in validation.name
    assert sorted(seen) == sorted(merged)


def test_a_fold_leaves_the_test_split_alone(builder):
    with_fold = pipeline.open_split(builder, "test", Fold(1))
    assert with_fold.image_ids() == pipeline.open_split(builder, "test").image_ids()


def test_folds_of_photographs_without_a_validation_split(folder_data):
    builder = pipeline.open_dataset(*folder_data)
    assert pipeline.open_training_splits(builder)[1] is None
    train, validation = pipeline.open_training_splits(builder, Fold(0, 2))
    assert (len(train), len(validation)) in ((2, 3), (3, 2))
    assert set(train.diagnoses()) == {-1}


def test_more_folds_than_images(folder_data):
    builder = pipeline.open_dataset(*folder_data)
    with pytest.raises(UserError, match="5 images, too few for 6 folds"):
        pipeline.open_split(builder, "train", Fold(0, 6))
