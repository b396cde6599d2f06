"""The readers of weights on files as other programs, versions and disks make them."""

import json
import pathlib
import pickle
import struct
import tempfile

import h5py
import numpy as np
import pytest
import weight_files
from fuzz.damage import changed, damaged, odd_texts, odd_values, outcome
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save

from mtl_jax.weights import encoder, names, tensors

# As a file of weights has at least its bytes in memory, and at most 16 times.
MOST_EXPANSION = 16

LAYERS = {
    "block1_conv1": (np.ones((3, 3, 3, 2), "f4"), np.ones(2, "f4")),
    "block1_conv2": (np.ones((3, 3, 2, 2), "f4"), np.zeros(2, "f4")),
}
STATE = {
    "features.0.weight": np.arange(54, dtype="f4").reshape(2, 3, 3, 3),
    "features.0.bias": np.array([1, -2], "f4"),
    "classifier.0.weight": np.ones((2, 2), "f2"),
    "num_batches_tracked": np.array(7, "i8"),
}


def contents_of(folder, write, *args, **options):
    path = folder / "whole"
    write(path, *args, **options)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def read(folder, suffix, content, reader=tensors.read):
    """Reads a file; returns None if it is refused rightly."""
    path = folder / f"weights{suffix}"
    path.write_bytes(content)
    found, sentence = outcome(reader, path)
    if found is None:
        assert str(path) in sentence
        return None
    named = found[0] if isinstance(found, tuple) else found
    size = 0
    for name, tensor in named.items():
        assert isinstance(name, str)
        assert isinstance(tensor, np.ndarray)
        assert tensor.dtype == np.float32
        assert np.isfinite(tensor).all()
        size += tensor.nbytes
    # Half precision takes twice as much in memory.
    assert size <= 2 * MOST_EXPANSION * len(content)
    return found


@given(st.data())
def test_damaged_safetensors(folder, data):
    read(folder, ".safetensors", data.draw(damaged(save(STATE))))


KINDS = [
    *("F16", "F32", "F64", "BF16", "F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "F8_E8M0"),
    *("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "C64", "F128", ""),
]


@given(st.data())
def test_headers_of_safetensors(folder, data):
    whole = save(STATE)
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    values = st.sampled_from(KINDS) | odd_values | st.integers(-1, 2**64)
    text = json.dumps(data.draw(changed(header, values))).encode()
    size = data.draw(st.sampled_from((len(text), len(text) - 1, 0, 2**40, 2**63)))
    content = struct.pack("<Q", size) + text + whole[8 + length :]
    read(folder, ".safetensors", content)


@given(st.sampled_from(KINDS), st.binary(min_size=16, max_size=16))
@example("F8_E4M3", bytes(16))
@example("F64", np.array([1e300, 1]).tobytes())
def test_numbers_of_every_kind(folder, kind, numbers):
    """Also such as NumPy does not have, and those beyond float32."""
    bits = int("0" + "".join(filter(str.isdigit, kind.split("_")[0]))) or 8
    shape = [16 * 8 // bits]
    header = {"x": {"dtype": kind, "shape": shape, "data_offsets": [0, 16]}}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + numbers
    found = read(folder, ".safetensors", content)
    plain = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    if kind in plain:
        with np.errstate(over="ignore"):
            wanted = np.frombuffer(numbers, plain[kind]).astype("f4")
        if found is None:
            assert not np.isfinite(wanted).all()
        else:
            np.testing.assert_array_equal(found["x"], wanted)
    elif found is not None and kind != "BF16":
        assert found == {} or kind.startswith("F")


@pytest.fixture(scope="module")
def keras_files(folder):
    return [
        contents_of(folder, weight_files.write_keras, LAYERS),
        contents_of(folder, weight_files.write_keras, LAYERS, whole_model=True),
        contents_of(folder, weight_files.write_keras3, LAYERS),
    ]


@given(st.data())
def test_damaged_hdf5(folder, keras_files, data):
    whole = data.draw(st.sampled_from(keras_files))
    read(folder, ".h5", data.draw(damaged(whole)))


HDF5_VALUES = [
    *(7, 1.5, "text", b"bytes", np.zeros(0), np.zeros((1, 2)), np.array(["a"], "S1")),
    *(h5py.Empty("f4"), h5py.SoftLink("/conv2d"), h5py.SoftLink("/absent"), "root"),
    *(h5py.ExternalLink("absent.h5", "/"), h5py.ExternalLink("weights.h5", "/"), None),
    *(np.array([np.nan]), np.array([1e300]), np.array([1 + 2j]), np.ones(3, bool)),
    *(np.array([(1, 2.0)], "i4,f4"), np.arange(3), np.ones((2, 2), "f2")),
    *(np.dtype("f4"), np.zeros((2, 0, 3), "f4")),
]
HDF5_NAMES = [
    *("conv2d/kernel:0", "conv2d/vars/0", "layers/conv2d/vars/1", "model_weights"),
    *("a", "a/b", "a/b/c", "layers", "vars/0", "é/ü", "b/b_W_1:0", "model_weights/a/b"),
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(HDF5_NAMES),
            st.sampled_from(HDF5_VALUES),
            st.none() | st.sampled_from(HDF5_VALUES[:8]),
        ),
        max_size=4,
    )
)
@example([("model_weights", 7, None)])
@example([("a/b", "text", None)])
@example([("a/b", h5py.Empty("f4"), None)])
@example([("a/b", np.array([1e300]), None)])
def test_structures_of_hdf5(folder, items):
    path = folder / "made.h5"
    with h5py.File(path, "w") as file:
        for name, value, attribute in items:
            try:
                if value is None:
                    file.create_group(name)
                else:
                    is_root = isinstance(value, str) and value == "root"
                    file[name] = file["/"] if is_root else value
                if attribute is not None:
                    file[name].parent.attrs["name"] = attribute
            # Another item has the name, or stands in the way.
            except (AttributeError, KeyError, OSError, TypeError, ValueError):
                continue
    read(folder, ".h5", path.read_bytes())


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", exc_type=ImportError)


@pytest.fixture(scope="module")
def torch_files(torch, folder):
    from sklearn.linear_model import LogisticRegression

    state = {name: torch.from_numpy(x) for name, x in STATE.items()}
    regression = LogisticRegression().fit([[0.1], [0.9]], [0, 1])
    whole = {"model_state_dict": state, "epoch": np.int64(3), "classifier": regression}
    found = []
    for content in (state, whole):
        for zipped in (True, False):
            path = folder / "whole.pth"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            found.append(path.read_bytes())
    return found


READERS = (tensors.read, tensors.read_checkpoint)


@given(st.data())
def test_damaged_torch(folder, torch_files, data):
    whole = data.draw(st.sampled_from(torch_files))
    content = data.draw(damaged(whole))
    found = read(folder, ".pth", content, data.draw(st.sampled_from(READERS)))
    if isinstance(found, tuple):
        numbers_in(found[1])


def numbers_in(value):
    """Reads the numbers of all entries of a checkpoint that are not its tensors."""
    if isinstance(value, dict):
        for inside in value.values():
            numbers_in(inside)
    try:
        found = tensors.read_numbers(value)
    except ValueError:
        return
    assert all(isinstance(number, float) for number in found)
    state = getattr(value, "state", None)
    if isinstance(state, dict):
        numbers_in(state)


def entries(torch):
    """What may be in a state dict."""
    return [
        *(torch.zeros(2), torch.zeros(2, requires_grad=True), torch.zeros(()).bool()),
        *(torch.zeros(0), torch.zeros(3).half(), torch.zeros(3).bfloat16()),
        *(torch.tensor([float("nan")]), torch.tensor([1e300], dtype=torch.float64)),
        *(torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse()),
        *(torch.zeros(1).expand(9, 9), torch.zeros(4)[::2], torch.zeros(2, 2).T),
        *(torch.empty(2, device="meta"), torch.nn.Parameter(torch.ones(1))),
        *(torch.zeros(2).to(torch.float8_e4m3fn), torch.eye(2).to_sparse_csr()),
        *(None, 1, 1.5, "text", [torch.zeros(1)], {"x": torch.zeros(1)}, (), {}),
        *(np.float64(1), np.zeros(2), np.array(["a"]), set(), b"bytes", 10**400),
    ]


KEYS = ["model", "state_dict", "module.a", "module.", "model.b", "", "a", 1, None, (1,)]


@given(st.data())
def test_structures_of_torch(torch, folder, data):
    inner = st.dictionaries(
        st.sampled_from(KEYS) | odd_texts, st.sampled_from(entries(torch)), max_size=4
    )
    content = data.draw(
        st.one_of(
            inner,
            st.dictionaries(st.sampled_from(KEYS), inner, max_size=2),
            st.sampled_from(entries(torch)),
        )
    )
    path = folder / "made.pth"
    torch.save(content, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    reader = data.draw(st.sampled_from(READERS))
    found = read(folder, ".pth", path.read_bytes(), reader)
    if isinstance(found, tuple):
        numbers_in(found[1])


@given(odd_values)
def test_other_pickles(torch, folder, value):
    for protocol in (2, 5):
        assert read(folder, ".pth", pickle.dumps(value, protocol)) is None


@given(st.sampled_from(sorted(names._DEPTHS)), st.data())
def test_shapes_of_an_architecture(name, data):
    """A file is of an architecture if it has each tensor in its shape."""
    architecture = name + data.draw(st.sampled_from(("", "_bn")))
    layers = names.torchvision_vgg(architecture)
    right = dict(pair for layer in layers.values() for pair in layer)
    shapes = data.draw(
        changed(
            {name: list(shape) for name, shape in right.items()},
            st.lists(st.integers(0, 5), max_size=5),
        )
    )
    if not isinstance(shapes, dict):
        return
    found = {
        name: np.broadcast_to(np.float32(0), tuple(shape))
        for name, shape in shapes.items()
        if isinstance(shape, list) and all(isinstance(n, int) for n in shape)
    }
    is_right = all(n in found and found[n].shape == s for n, s in right.items())
    path = pathlib.Path("a.pth")
    _, sentence = outcome(names.check, path, architecture, found, layers)
    assert is_right == (not sentence)


ENCODER = encoder.EncoderWeights(
    architecture="vgg16_bn",
    params={"block1_conv1": {"conv": {"kernel": LAYERS["block1_conv1"][0]}}},
    batch_stats={"block1_conv1": {"norm": {"mean": LAYERS["block1_conv1"][1]}}},
    input_mean=np.array([0.5, 0.4, 0.3], np.float32),
    source="vgg16_bn.pth",
)


@pytest.fixture(scope="module")
def saved():
    with tempfile.TemporaryDirectory() as top:
        encoder.save(ENCODER, pathlib.Path(top, "saved"))
        yield {p.name: p.read_bytes() for p in pathlib.Path(top, "saved").iterdir()}


@given(st.data())
def test_a_damaged_folder_of_an_encoder(folder, saved, data):
    """The network that starts from it has the shapes of its own layers."""
    files = dict(saved)
    name = data.draw(st.sampled_from(("encoder.safetensors", "weights.json")))
    if name == "weights.json" and data.draw(st.booleans()):
        record = data.draw(changed(json.loads(files[name])))
        files[name] = json.dumps(record).encode()
    else:
        files[name] = data.draw(damaged(files[name]))
    place = folder / "encoder"
    place.mkdir(exist_ok=True)
    for one, content in files.items():
        (place / one).write_bytes(content)
    params = {"encoder": ENCODER.params, "head": np.zeros(2)}
    statistics = {"encoder": ENCODER.batch_stats, "input": {"mean": np.zeros(3)}}

    def begin():
        found = encoder.load(place)
        encoder.check_suitable(found, "vgg16", "batch")
        return encoder.start_from(found, params, statistics)

    began, _ = outcome(begin)
    if began is None:
        return
    for old, new in zip((params, statistics), began, strict=True):
        for path, array in encoder.traverse_util.flatten_dict(old).items():
            assert encoder.traverse_util.flatten_dict(new)[path].shape == array.shape
    new, mean = began[0]["encoder"], began[1]["input"]["mean"]
    assert np.isfinite(mean).all()
    assert all(np.isfinite(x).all() for x in encoder.jax.tree.leaves(new))
