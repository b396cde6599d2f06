import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtl_jax.data import schema, synthetic
from mtl_jax.data.synthetic import builder, renderer
from mtl_jax.data.synthetic.anatomy import sample_anatomy
from mtl_jax.data.synthetic.renderer import EVALUATION_CAMERA, TRAINING_CAMERA
from mtl_jax.data.synthetic.vessels import AVASCULAR_RADIUS, sample_vessels
from mtl_jax.errors import UserError

CAMERAS = [TRAINING_CAMERA, EVALUATION_CAMERA]
SMALL = {"image_size": 32, "num_images": (5, 2, 3), "glaucoma_fraction": 0.4}


def mask_height(mask):
    return mask.sum(axis=0).max()


def vcdr(anatomy):
    frame = renderer.make_frame(anatomy, (128, 128))
    disc, cup = renderer.draw_masks(frame)
    return mask_height(cup) / mask_height(disc)


def sample(count, camera=TRAINING_CAMERA, *, glaucoma=False):
    return [
        sample_anatomy(np.random.default_rng([glaucoma, i]), camera.framing, glaucoma)
        for i in range(count)
    ]


def render(size, seed=0, camera=TRAINING_CAMERA, *, glaucoma=True):
    return renderer.render(np.random.default_rng(seed), size, camera, glaucoma)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return synthetic.build(tmp_path_factory.mktemp("built"), **SMALL)


def read(version_dir, split):
    skip = {name: tfds.decode.SkipDecoding() for name in schema.NATIVE_MASKS}
    source = tfds.builder_from_directory(str(version_dir)).as_data_source(
        split, decoders=skip
    )
    return {record["image_id"].decode(): record for record in source}


class TestRender:
    @pytest.mark.parametrize("size", [(32, 32), (40, 64), (90, 48)])
    @pytest.mark.parametrize("camera", CAMERAS)
    def test_types_and_shapes(self, size, camera):
        fundus = render(size, camera=camera)
        assert fundus.photograph.shape == (*size, 3)
        for mask in (fundus.disc_mask, fundus.cup_mask):
            assert mask.shape == size
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) == {0, 1}
        assert fundus.photograph.dtype == np.uint8
        assert fundus.photograph.max() > 128
        assert fundus.glaucoma == 1

    def test_same_seed_gives_the_same_photograph(self):
        for one, other in zip(
            dataclasses.astuple(render((48, 48))),
            dataclasses.astuple(render((48, 48))),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)

    def test_other_seed_gives_another(self):
        one, other = render((48, 48)).photograph, render((48, 48), seed=1).photograph
        assert np.abs(one.astype(int) - other).mean() > 5

    @pytest.mark.parametrize("camera", CAMERAS)
    def test_cup_lies_inside_disc_and_both_inside_field(self, camera):
        for seed in range(8):
            fundus = render((48, 48), seed, camera, glaucoma=bool(seed % 2))
            assert 0 < fundus.cup_mask.sum() < fundus.disc_mask.sum()
            assert np.all(fundus.disc_mask[fundus.cup_mask == 1] == 1)
            disc = fundus.photograph[fundus.disc_mask == 1]
            assert disc.mean(axis=0)[0] > 60

    def test_disc_is_brighter_than_retina_and_cup_than_rim(self):
        contrasts = []
        for seed in range(8):
            fundus = render((96, 96), seed)
            green = fundus.photograph[..., 1].astype(float)
            disc, cup = fundus.disc_mask == 1, fundus.cup_mask == 1
            retina = ~disc & (fundus.photograph.sum(-1) > 60)
            contrasts.append(
                (
                    green[disc].mean() - green[retina].mean(),
                    green[cup].mean() - green[disc & ~cup].mean(),
                )
            )
        assert np.min(contrasts, axis=0)[0] > 20
        assert np.mean(contrasts, axis=0)[1] > 10

    def test_two_sizes_have_the_same_truth_and_picture(self):
        for seed in range(4):
            small, large = render((64, 64), seed), render((192, 192), seed)
            for mask in ("disc_mask", "cup_mask"):
                areas = [getattr(f, mask).mean() for f in (small, large)]
                assert areas[0] == pytest.approx(areas[1], rel=0.12)
            relative = [
                (np.array(f.fovea_xy) + 0.5) / len(f.disc_mask) for f in (small, large)
            ]
            np.testing.assert_allclose(*relative, atol=1e-6)
            shrunk = large.photograph.reshape(64, 3, 64, 3, 3).mean((1, 3))
            assert np.abs(shrunk - small.photograph).mean() < 8

    def test_fovea_is_dark(self):
        for seed in range(6):
            fundus = render((96, 96), seed, glaucoma=False)
            column, row = (round(v) for v in fundus.fovea_xy)
            green = fundus.photograph[..., 1].astype(float)
            here = green[row - 2 : row + 3, column - 2 : column + 3].mean()
            around = green[row - 16 : row + 17, column - 16 : column + 17].mean()
            assert here < around

    def test_left_and_right_eyes_occur(self):
        sides = [anatomy.side for anatomy in sample(40)]
        assert 8 < sides.count(1) < 32


class TestAnatomy:
    @pytest.mark.parametrize(
        ("camera", "distance", "deviation", "rise"),
        [
            (TRAINING_CAMERA, 798 / 2124, 48 / 2124, 109 / 2124),
            (EVALUATION_CAMERA, 626 / 1634, 46 / 1634, 55 / 1634),
        ],
    )
    def test_disc_and_fovea_lie_as_in_refuge(self, camera, distance, deviation, rise):
        eyes = sample(300, camera)
        fovea = np.array([eye.fovea for eye in eyes])
        distances = np.hypot(*fovea.T)
        assert distances.mean() == pytest.approx(distance, abs=0.005)
        assert distances.std() == pytest.approx(deviation, rel=0.15)
        assert fovea[:, 1].mean() == pytest.approx(rise, abs=0.005)

    @pytest.mark.parametrize("camera", CAMERAS)
    def test_fovea_and_disc_are_in_the_field_of_view(self, camera):
        radius = camera.field_of_view / 2
        for eye in sample(300, camera):
            assert math.dist(eye.fovea, eye.gaze_point) < radius - 0.05
            reach = math.hypot(*eye.gaze_point) + max(eye.disc.semi_axes)
            assert reach < radius

    def test_vcdr_distributions_differ_and_overlap(self):
        healthy = np.array([vcdr(eye) for eye in sample(150)])
        glaucoma = np.array([vcdr(eye) for eye in sample(150, glaucoma=True)])
        assert healthy.mean() == pytest.approx(0.45, abs=0.04)
        assert glaucoma.mean() == pytest.approx(0.66, abs=0.05)
        assert 0.03 < np.mean(healthy > np.quantile(glaucoma, 0.2)) < 0.5
        assert glaucoma.min() < np.median(healthy) + 0.05

    def test_signs_beside_vcdr_tell_most_but_not_all_eyes(self):
        def share_with_sign(eyes):
            return np.mean(
                [bool(e.wedges or e.cup.notches or e.haemorrhages) for e in eyes]
            )

        assert share_with_sign(sample(200)) == pytest.approx(0.07, abs=0.06)
        assert share_with_sign(sample(200, glaucoma=True)) > 0.93

    def test_no_vessel_crosses_the_fovea(self):
        fovea = (0.37, 0.05)
        for seed in range(10):
            vessels = sample_vessels(np.random.default_rng(seed), fovea)
            assert len(vessels) > 20
            for vessel in vessels:
                apart = np.hypot(*(vessel.points - fovea).T)
                assert apart.min() >= AVASCULAR_RADIUS


class TestLabels:
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 40, 400])
    @pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 1 / 3, 0.5, 1])
    def test_exact_count_and_both_classes(self, count, fraction):
        labels = builder.assign_labels(count, fraction)
        assert len(labels) == count
        wanted = round(fraction * count)
        if count >= 2:
            wanted = min(max(wanted, 1), count - 1)
        assert sum(labels) == wanted

    def test_a_short_split_begins_a_longer_one(self):
        short, long = (builder.assign_labels(n, 0.1) for n in (60, 400))
        assert long[:60] == short


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "name"),
        [
            ({}, "256px"),
            ({"image_size": 96, "num_images": (240, 60, 100)}, "96px-240-60-100"),
            ({"seed": 3, "glaucoma_fraction": 0.4}, "256px-glaucoma0.4-seed3"),
        ],
    )
    def test_name_tells_what_differs(self, fields, name):
        assert builder.SyntheticFundusConfig(**fields).name == name

    @pytest.mark.parametrize(
        "fields",
        [
            {"image_size": 100},
            {"image_size": 16},
            {"image_size": 0},
            {"num_images": (10, 0, 10)},
            {"num_images": (10, 10)},
            {"glaucoma_fraction": 1.5},
            {"seed": -1},
        ],
    )
    def test_nonsense_is_refused_in_one_sentence(self, tmp_path, fields):
        with pytest.raises(UserError) as caught:
            synthetic.build(tmp_path, **fields)
        message = str(caught.value)
        assert message.endswith(".")
        assert "\n" not in message
        assert not list(tmp_path.iterdir())


class TestBuild:
    def test_records_hold_the_exact_truth(self, built):
        for split, count in zip(builder.SPLITS, SMALL["num_images"], strict=True):
            records = read(built, split)
            labels = builder.assign_labels(count, SMALL["glaucoma_fraction"])
            assert set(records) == {f"{split}-{i:05d}" for i in range(count)}
            for index, glaucoma in enumerate(labels):
                record = records[f"{split}-{index:05d}"]
                seeds = [0, builder.SPLITS.index(split), index]
                camera = builder.CAMERAS[split]
                fundus = render(
                    (32, 32), np.random.SeedSequence(seeds), camera, glaucoma=glaucoma
                )
                np.testing.assert_array_equal(record["image"], fundus.photograph)
                for name in ("disc_mask", "cup_mask"):
                    mask = getattr(fundus, name)
                    np.testing.assert_array_equal(record[name][..., 0], mask)
                    native = schema.decode_png(record[f"native_{name}"])
                    np.testing.assert_array_equal(native, mask)
                np.testing.assert_allclose(
                    record["fovea_xy"], fundus.fovea_xy, rtol=1e-6
                )
                assert record["glaucoma"] == glaucoma
                assert record["camera"].decode() == camera.name
                assert record["has_label"].all()
                assert list(record["native_size"]) == [32, 32]

    def test_the_field_of_view_fills_the_image_of_that_shape(self):
        eye = {"split": "train", "image_size": 256, "seed": 0}
        whole = builder.draw_record((0, False), **eye)
        record = builder.draw_record((0, False), **eye, shape="fov")
        assert whole["frame"].tolist() == [0, 0, 256, 256]
        lit = schema.decode_png(whole["image"]).max(-1) > 40
        columns, rows = np.flatnonzero(lit.any(0)), np.flatnonzero(lit.any(1))
        left, top, width, height = record["frame"]
        assert width == height
        middle = left + width / 2, top + height / 2
        ends = np.array([columns[[0, -1]], rows[[0, -1]]]) + [0, 1]
        np.testing.assert_allclose(middle, ends.mean(1), atol=3)
        np.testing.assert_allclose(width, np.ptp(ends, axis=1).max(), atol=4)
        config = builder.SyntheticFundusConfig(seed=3, shape="fov")
        assert config.name == "256px-seed3-fov"

    def test_splits_have_their_own_camera(self):
        cameras = {s: builder.CAMERAS[s].name for s in builder.SPLITS}
        assert cameras["train"] != cameras["validation"] == cameras["test"]

    def test_nothing_else_is_left(self, built):
        data_dir = built.parents[2]
        assert [p.name for p in data_dir.iterdir()] == ["synthetic_fundus"]
        assert [p.name for p in built.parent.iterdir()] == ["3.0.0"]

    def test_images_do_not_depend_on_their_number(self, tmp_path, built):
        more = {**SMALL, "num_images": (10, 2, 3)}
        longer = read(synthetic.build(tmp_path, **more), "train")
        for image_id, record in read(built, "train").items():
            np.testing.assert_array_equal(record["image"], longer[image_id]["image"])

    def test_second_build_draws_nothing(self, built, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("drawn again")

        monkeypatch.setattr(renderer, "render", refuse)
        assert synthetic.build(built.parents[2], **SMALL) == built

    def test_interruption_leaves_nothing(self, tmp_path, monkeypatch):
        draw = renderer.render
        calls = []

        def fail_late(*args, **kwargs):
            calls.append(args)
            if len(calls) > 3:
                raise KeyboardInterrupt
            return draw(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(renderer, "render", fail_late)
            with pytest.raises(KeyboardInterrupt):
                synthetic.build(tmp_path, **SMALL)
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert not [p for p in files if "array_record" in p.name]
        assert len(read(synthetic.build(tmp_path, **SMALL), "train")) == 5

    def test_killed_build_is_swept_up(self, tmp_path):
        config = builder.SyntheticFundusConfig(**SMALL)
        stale = tmp_path / "synthetic_fundus" / config.name / "incomplete.ABC123_3.0.0"
        stale.mkdir(parents=True)
        (stale / "synthetic_fundus-train.array_record").write_bytes(b"half")
        built = synthetic.build(tmp_path, **SMALL)
        assert not stale.exists()
        assert len(read(built, "test")) == 3

    def test_processes_draw_what_threads_draw_without_tensorflow(self, tmp_path, built):
        # More images than `building` leaves to threads.
        program = (
            "import sys\n"
            "from mtl_jax.data import synthetic\n"
            "if __name__ == '__main__':\n"
            f"    print(synthetic.build({str(tmp_path)!r}, image_size=32,\n"
            "        num_images=(40, 2, 2), glaucoma_fraction=0.4))\n"
            "    assert 'tensorflow' not in sys.modules\n"
            "    assert 'jax' not in sys.modules\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        many = read(done.stdout.strip(), "train")
        assert len(many) == 40
        for image_id, record in read(built, "train").items():
            np.testing.assert_array_equal(record["image"], many[image_id]["image"])
