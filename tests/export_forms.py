"""Networks of every form that is exported, and the table of their equality.

python tests/export_forms.py PHOTOGRAPHS writes, for each form and format, the largest
differences between an export and `predict` on these photographs, as docs/export.md has
them. Two stages are the network in the package, with its flips and its calibration. Of
the same first stage are the network of one stage, and those of single tasks. The
imported one has drawn numbers and the conventions of the authors' program.
"""

import copy
import pathlib
import sys
import tempfile

import jax
import numpy as np

from configs import default, refuge
from mtl_jax import configuration, exports, workdirs
from mtl_jax.data import images
from mtl_jax.inference.vcdr import VcdrClassifier

SEED = 39


def draw(shapes, seed=SEED):
    """Draws all variables of a network."""
    rng = np.random.default_rng(seed)

    def leaf(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.7, 1.3, leaf.shape).astype(np.float32)
        bound = np.sqrt(6 / max(1, np.prod(leaf.shape[:-1])))
        return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def write(folder, config, size, seed=SEED):
    """Writes a network of drawn numbers for a config, and its parts if it has some."""
    parts = configuration.part_configs(config) or {"": config}
    for i, (name, part) in enumerate(parts.items()):
        drawn = draw(configuration.build(part).variable_shapes(), seed + i)
        workdirs.write_network(
            folder / name,
            part,
            drawn["params"],
            image_size=size,
            shape="fov",
            batch_stats=drawn.get("batch_stats", {}),
            classifier=VcdrClassifier(8.0, -4.0, 0.4),
            origin={},
        )
    return folder


def small(**fields):
    """A config that compiles fast."""
    config = default.get_config()
    config.model.encoder, config.model.width = "small", 1 / 16
    config.update_from_flattened_dict(fields)
    return config


def authors():
    """The config of the authors' program."""
    config = refuge.get_config("authors")
    config.model.width = 1 / 16
    return config


def _of_first_stage(folder):
    """Writes the first stage of the package's network as networks of their own."""
    ((_, variables), _) = workdirs.load(workdirs.BUILT_IN).networks
    variables = jax.tree.map(lambda x: np.asarray(x)[0], variables)
    (config, _) = (p.config for p in workdirs.load(workdirs.BUILT_IN).parts)
    sets = {"one stage": [("", "disc", "fovea")]}
    sets["single tasks"] = [("disc", "disc"), ("fovea", "fovea")]
    for form, members in sets.items():
        for name, *wanted in members:
            own = copy.deepcopy(config)
            own.tasks = tuple(wanted)
            left_out = {f"head_{task}" for task in {"disc", "fovea"} - {*wanted}}
            params = {k: v for k, v in variables["params"].items() if k not in left_out}
            workdirs.write_network(
                folder / form / name,
                own,
                params,
                image_size=512,
                shape="fov",
                batch_stats=variables.get("batch_stats", {}),
                classifier=None,
                origin={},
            )
        yield form, folder / form


def _table(paths, folder):
    print("| network | format | maps | probabilities | points | vCDR | mask pixels |")
    print("|---|---|---|---|---|---|---|")
    config = authors()
    config.model.width = 1 / 4
    forms = {
        "two stages, flips": workdirs.BUILT_IN,
        **dict(_of_first_stage(folder)),
        "imported": write(folder / "imported", config, 256),
    }
    for form, workdir in forms.items():
        network = workdirs.load_calibrated([workdir])
        for kind in exports.FORMATS:
            path = folder / f"network.{kind}"
            exports.write(network, path, kind)
            found = exports.compare(exports.read(path), network, paths)
            path.unlink()
            path.with_name(f"{path.name}.json").unlink()
            cells = [
                "" if value is None else f"{value:.1e}"
                for value in (found.maps, found.probabilities, found.points, found.vcdr)
            ]
            print("|", " | ".join([form, kind, *cells, str(found.mask_pixels)]), "|")
            sys.stdout.flush()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        _table(images.find_photographs(sys.argv[1]), pathlib.Path(place))
