"""Checkpoints of the original program become workdirs."""

import json
import math
import pathlib
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import weight_files
from original_program import original_logits, original_network
from sklearn.linear_model import LogisticRegression

from configs import refuge
from mtl_jax import configuration, weights, workdirs
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.inference import scoring
from mtl_jax.inference.vcdr import VcdrClassifier
from mtl_jax.weights import tensors

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", exc_type=ImportError)


@pytest.fixture(scope="module")
def original(torch):
    return original_network(torch)


@pytest.fixture(scope="module")
def regression():
    rng = np.random.default_rng(0)
    ratios = rng.uniform(0.2, 0.9, (40, 1))
    return LogisticRegression().fit(ratios, (ratios[:, 0] > 0.5).astype(int))


@pytest.fixture(scope="module")
def checkpoint(torch, original, regression, tmp_path_factory):
    """A file as the original program writes it."""
    path = tmp_path_factory.mktemp("original") / "checkpoint.pth"
    optimizer = torch.optim.Adam(original.parameters())
    torch.save(
        {
            "epoch": 120,
            "n_iter": 6000,
            "model_state_dict": original.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "classifier": regression,
        },
        path,
    )
    return path


@pytest.mark.slow
def test_a_checkpoint_becomes_a_workdir_with_the_original_logits(
    torch, original, regression, checkpoint, synthetic_data, tmp_path
):
    finished = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/import_weights.py",
            f"--source={checkpoint}",
            "--architecture=glaucoma_mtl",
            f"--output={tmp_path / 'run'}",
            "--image_size=32",
            f"--config={ROOT / 'configs/refuge.py:authors'}",
            f"--config.data.data_dir={synthetic_data[0]}",
            f"--config.data.dataset={synthetic_data[1]}",
        ],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    first, last = finished.stdout.splitlines()
    assert first.startswith("logistic regression on the cup-to-disc ratio: coeff")
    assert f"scripts/evaluate.py --workdir={tmp_path / 'run'}" in last

    network = workdirs.load(tmp_path / "run")
    assert network.metadata["imported"] == {
        "source": "checkpoint.pth",
        "epoch": 120,
        "n_iter": 6000,
    }
    assert network.num_parameters == 17_268_036
    authors = configuration.build(refuge.get_config("authors")).post
    assert network.post == authors
    assert network.post.pixel_origin == "corner"
    assert network.classifier == pytest.approx(numbers_of(regression))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (network.batch_size, 32, 32, 3), np.uint8)
    logits, _ = network({"image": images})
    for name, wanted in original_logits(torch, original, images).items():
        assert wanted.std() > 0.01
        np.testing.assert_allclose(logits[name], wanted, atol=1e-4)
    _, metrics = evaluate.evaluate(tmp_path / "run")
    assert metrics["auc_vcdr"] is not None
    assert metrics["seconds_per_step"] is None


def numbers_of(regression):
    """Coefficient, intercept, and P at a ratio of 0, as that program has it."""
    coefficient, intercept = regression.coef_.item(), regression.intercept_.item()
    return coefficient, intercept, 1 / (1 + math.exp(-intercept))


@pytest.mark.parametrize("numpy_1", [False, True])
def test_the_classifier_needs_no_code_of_the_file(
    torch, checkpoint, regression, numpy_1, tmp_path
):
    """Whatever version of NumPy and scikit-learn pickled it."""
    path = checkpoint
    if numpy_1:
        path = tmp_path / "old.pth"
        with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("/data.pkl"):
                    assert b"cnumpy._core.multiarray\n" in content
                    content = content.replace(
                        b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
                    ).replace(b"linear_model._logistic\n", b"linear_model.logistic\n")
                new.writestr(name, content)
    _, others = tensors.read_checkpoint(path)
    assert type(others["classifier"]) is tensors.Inert
    found = weights.import_checkpoint(path).classifier
    assert found == pytest.approx(numbers_of(regression))


class Malicious:
    """A pickle of it calls a function when it is loaded."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_code_in_the_place_of_the_classifier_does_not_run(torch, original, tmp_path):
    from sklearn.utils import shuffle

    state_dict = original.state_dict()
    content = {
        "model_state_dict": state_dict,
        "classifier": Malicious(open, str(tmp_path / "ran"), "w"),
    }
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"could run code .*refused"):
        weights.import_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()
    # A function of scikit-learn is not called either; the tensors are read.
    torch.save({**content, "classifier": Malicious(shuffle, [1])}, tmp_path / "b.pth")
    network = weights.import_checkpoint(tmp_path / "b.pth")
    assert network.classifier is None
    assert network.epoch is network.n_iter is None
    np.testing.assert_array_equal(
        network.params["head_cup"]["kernel"][:, 0],
        state_dict["outcs.1.conv.weight"][0, :, 0, 0],
    )


def test_an_array_is_not_restored_by_numpy(torch, original, tmp_path):
    """NumPy would follow the bytes of an array that is called one of objects."""
    fitted = LogisticRegression()
    fitted.classes_, fitted.intercept_ = np.array([0, 1]), np.zeros(1)
    fitted.coef_ = PointerArray()
    content = {
        "model_state_dict": original.state_dict(),
        "classifier": fitted,
        "epoch": np.int64(7),
    }
    torch.save(content, tmp_path / "a.pth")
    network = weights.import_checkpoint(tmp_path / "a.pth")
    assert network.classifier is None
    assert network.epoch == 7


class PointerArray:
    """Pickled as an array of one object whose pointer is 1."""

    def __reduce__(self):
        reconstruct, args, state = np.zeros((1, 1)).__reduce__()
        kind = np.dtype("O").__reduce__()
        # The last number, the flags, would say that it holds objects.
        flawed = Kind(*kind[:2], (*kind[2][:-1], 0))
        return reconstruct, args, (*state[:2], flawed, False, (1).to_bytes(8, "little"))


class Kind:
    """Pickled as it is told."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["float16", "float64", "int8"])
def test_numbers_of_any_kind_and_both_formats(torch, original, zipped, kind, tmp_path):
    fitted = LogisticRegression(random_state=np.random.RandomState(0))
    fitted.classes_ = np.array([0, 1], "u1")
    fitted.coef_, fitted.intercept_ = np.array([[3]], kind), np.array([-2], kind)
    torch.save(
        {
            "model_state_dict": {
                f"module.{name}": x for name, x in original.state_dict().items()
            },
            "classifier": fitted,
        },
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=zipped,
    )
    network = weights.import_checkpoint(tmp_path / "a.pth")
    assert network.classifier == pytest.approx(numbers_of(fitted))


@pytest.mark.parametrize(
    "value", [[10**400], "1.5", np.array(1 + 2j), np.array(["a"]), {"state": 1}, None]
)
def test_what_is_no_number_is_no_classifier(torch, original, value, tmp_path):
    fitted = LogisticRegression()
    fitted.classes_, fitted.intercept_ = np.array([0, 1]), np.zeros(1)
    fitted.coef_ = value
    content = {"model_state_dict": original.state_dict(), "classifier": fitted}
    torch.save(content, tmp_path / "a.pth")
    assert weights.import_checkpoint(tmp_path / "a.pth").classifier is None
    torch.save(original.state_dict(), tmp_path / "bare.pth")
    assert weights.import_checkpoint(tmp_path / "bare.pth").classifier is None


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_cast(torch, original, precision, tmp_path):
    dtype = getattr(torch, precision)
    state_dict = {name: x.to(dtype) for name, x in original.state_dict().items()}
    torch.save({"model_state_dict": state_dict}, tmp_path / "a.pth")
    network = weights.import_checkpoint(tmp_path / "a.pth")
    kernel = network.params["head_glaucoma"]["kernel"]
    assert kernel.dtype == np.float32
    wanted = state_dict["outfc.fc.weight"].float().numpy().T
    np.testing.assert_array_equal(kernel, wanted)


def test_files_of_something_else_are_named(torch, original, checkpoint, tmp_path):
    def refused(content, message):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(UserError, match=message):
            weights.import_checkpoint(tmp_path / "a.pth")

    state_dict = original.state_dict()
    refused([1, 2], "holds no tensors by name")
    sparse = {"a": torch.ones(3), "b": torch.eye(3).to_sparse()}
    refused({"model_state_dict": sparse}, "tensors of an unusual layout")
    vgg = {k: torch.tensor(v) for k, v in weight_files.torchvision("vgg13").items()}
    refused(
        {"model_state_dict": vgg},
        r"no inc\.double_conv\.0\.conv_block\.CONV\.weight, and looks like "
        r"torchvision's vgg13",
    )
    short = dict(state_dict)
    del short["outcs.2.conv.bias"]
    refused({"model_state_dict": short}, r"it has no outcs\.2\.conv\.bias, and looks")
    short["outcs.2.conv.bias"] = torch.zeros(2)
    refused(
        {"model_state_dict": short},
        r"has outcs\.2\.conv\.bias of shape \(2,\) instead of \(1,\)",
    )
    whole = checkpoint.read_bytes()
    for share in (0.0, 0.5, 0.999):
        (tmp_path / "torn.pth").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="damaged, incomplete"):
            weights.import_checkpoint(tmp_path / "torn.pth")
    torch.save(state_dict, tmp_path / "b.pth")
    with pytest.raises(UserError, match="looks like a network of the original authors"):
        weights.import_encoder(tmp_path / "b.pth", "vgg13")


def small_network(config, random_variables, classifier=None):
    params = random_variables(configuration.build(config).model)["params"]
    return weights.OriginalNetwork(params, classifier, "small.pth", 7, None, ())


def of_the_authors(make_config, **fields):
    return make_config(
        {"model.encoder": "vgg13", "model.norm": "batch_no_average"}, **fields
    )


def test_a_missing_classifier_is_fitted_at_the_first_evaluation(
    make_config, random_variables, synthetic_data, tmp_path
):
    config = of_the_authors(make_config)
    network = small_network(config, random_variables)
    workdirs.write_imported(tmp_path / "run", config, network, 32)
    assert workdirs.load(tmp_path / "run").classifier is None
    _, metrics = evaluate.evaluate(tmp_path / "run")
    assert metrics["num_images"]["auc"] == 6
    found = workdirs.load(tmp_path / "run").classifier
    table = pipeline.open_split(pipeline.open_dataset(*synthetic_data), "train")
    assert found == scoring.fit_vcdr_classifier(table, 1.0)
    assert (
        VcdrClassifier(
            **json.loads((tmp_path / "run/vcdr_classifier.json").read_text())
        )
        == found
    )
    # Classifier and evaluation belong to that network, and go with it.
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt, which mtl_jax did not write"):
        workdirs.write_imported(tmp_path / "run", config, network, 32)
    (tmp_path / "run/notes.txt").unlink()
    workdirs.write_imported(tmp_path / "run", config, network, 32)
    assert workdirs.load(tmp_path / "run").classifier is None
    assert not (tmp_path / "run/evaluation").exists()


@pytest.mark.slow
def test_training_goes_on_from_it(make_config, random_variables, tmp_path):
    config = of_the_authors(
        make_config, tasks=("glaucoma",), num_epochs=2, validate_every=1
    )
    network = small_network(config, random_variables)
    workdirs.write_imported(tmp_path / "run", config, network, 32)
    with pytest.raises(UserError, match="continue it with --resume"):
        workdirs.train(config, tmp_path / "run")
    config.optimizer.learning_rate = 1e-30
    configuration.check(config)
    (tmp_path / "run/config.json").write_text(configuration.to_json(config))
    workdirs.train(config, tmp_path / "run", resume=True)
    ((_, variables),) = workdirs.load(tmp_path / "run", "latest").networks
    # So small a learning rate moves nothing: what was trained is what was imported.
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours[0], theirs, atol=1e-20),
        variables["params"],
        network.params,
    )
    assert workdirs.load(tmp_path / "run", "latest").checkpoint == "6"


def test_a_config_of_another_network_is_refused(
    make_config, random_variables, tmp_path
):
    config = of_the_authors(make_config)
    network = small_network(config, random_variables)
    for fields, said in (
        ({"model.norm": "batch"}, "norm is 'batch', but .*small.pth needs 'batch_no"),
        ({"model.encoder": "vgg16"}, "encoder is 'vgg16', but .* needs 'vgg13'"),
        ({"model.width": 0.25}, "of small.pth does not fit the config.s tasks"),
        ({"method.name": "single"}, "one network for all tasks"),
    ):
        own = {"model.encoder": "vgg13", "model.norm": "batch_no_average"}
        other = make_config({**own, **fields})
        with pytest.raises(UserError, match=said):
            workdirs.write_imported(tmp_path / "run", other, network, 32)
    with pytest.raises(UserError, match="multiple of 16"):
        workdirs.write_imported(tmp_path / "run", config, network, 100)
    assert not (tmp_path / "run").exists()
