"""Public functions are annotated whole.

Ruff's ANN001 would ask the same of every function inside another one; pyrefly checks
what the annotations say.
"""

import ast
import pathlib

import mtl_jax


def public_functions(body, prefix):
    """Functions of a module and methods of its classes, by name."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") and not node.name.endswith("__"):
            continue
        name = f"{prefix}: {node.name}"
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node.body, name)
        else:
            yield name, node


def lacking(function):
    """The arguments of a function without annotation, and `return`."""
    of = function.args
    positional = [*of.posonlyargs, *of.args]
    if positional and positional[0].arg in ("self", "cls"):
        positional = positional[1:]
    arguments = [*positional, *of.kwonlyargs, of.vararg, of.kwarg]
    names = [a.arg for a in arguments if a is not None and a.annotation is None]
    return names + ["return"] * (function.returns is None)


def test_public_functions_have_annotations():
    root = pathlib.Path(mtl_jax.__file__).parent
    functions = {
        name: function
        for path in root.rglob("*.py")
        for name, function in public_functions(
            ast.parse(path.read_text()).body, str(path.relative_to(root))
        )
    }
    assert len(functions) > 200
    bare = {name: names for name, f in functions.items() if (names := lacking(f))}
    assert not bare
