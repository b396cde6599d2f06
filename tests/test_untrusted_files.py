"""No file of a user is unpacked onto the disk, or restored by code that it names."""

import ast
import pathlib

import mtl_jax

# Functions and methods that write the members of an archive under their own names, or
# run what a pickle says.
FORBIDDEN = {
    "extract",
    "extractall",
    "unpack_archive",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
    "pandas.read_pickle",
    "pd.read_pickle",
    "eval",
    "exec",
}


def calls():
    """All calls in the package: where, the function's name, the keyword arguments."""
    root = pathlib.Path(mtl_jax.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                where = f"{path.relative_to(root)}:{node.lineno}"
                yield where, ast.unparse(node.func), keywords


def test_nothing_is_unpacked_or_unpickled():
    found = list(calls())
    assert len(found) > 2000
    for where, name, keywords in found:
        assert name not in FORBIDDEN, where
        assert name.rpartition(".")[2] not in FORBIDDEN - {"eval", "exec"}, where
        assert keywords.get("allow_pickle", "False") == "False", where
        if name == "torch.load":
            assert keywords["weights_only"] == "True", where
