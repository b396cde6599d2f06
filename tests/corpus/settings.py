"""Configs and flags, which fail before JAX starts a device."""

from corpus.case import Case


def train(*flags, config="configs/default.py"):
    return lambda place: [
        *("train", f"--config={config}", f"--workdir={place.own / 'new'}"),
        *flags,
    ]


def field(name, value, expected, code=1):
    """A case of one field of a config."""
    flag = f"--config.{name}={value}"
    return flag, code, expected, train(flag)


def written(text, *flags):
    """A config file of one's own."""

    def make(place):
        path = place.own / "mine.py"
        path.write_text(text)
        return train(*flags, config=path)(place)

    return make


CONFIGS = {
    "encoder": field("model.encoder", "vgg19", "'vgg19'; choose from vgg13, vgg16"),
    "norm": field("model.norm", "layer", "config.model.norm has 'layer'; choose"),
    "init": field("model.init", "zeros", "config.model.init has 'zeros'; choose"),
    "dtype": field("model.dtype", "float16", "config.model.dtype has 'float16'"),
    "method": field("method.name", "magic", "config.method.name has 'magic'"),
    "optimizer": field("optimizer.name", "Adam", "config.optimizer.name has 'Adam'"),
    "schedule": field("optimizer.schedule", "step", "schedule has 'step'; choose"),
    "score": field("evaluation.score", "f1", "config.evaluation.score has 'f1'"),
    "connectivity": field("evaluation.connectivity", "6", "has 6; choose from"),
    "no task": field("tasks", "()", "name at least one task"),
    "task": field("tasks", "('disc','rim')", "'rim'; choose from"),
    "task twice": field("tasks", "('disc','disc')", "each only once"),
    "batch of 0": field("batch_size", "0", "batch_size is 0; it must be positive"),
    "batch of -4": field("batch_size", "-4", "batch_size is -4; it must be positive"),
    "batch of None": field(
        "batch_size", "None", "--config.batch_size=None: invalid literal"
    ),
    "batch of text": field(
        "batch_size", "abc", "--config.batch_size=abc: invalid literal"
    ),
    "half a batch": field(
        "batch_size", "4.5", "--config.batch_size=4.5: invalid literal"
    ),
    "no epochs": field("num_epochs", "0", "num_epochs is 0; it must be positive"),
    "rate of 0": field("optimizer.learning_rate", "0", "must be positive"),
    "negative rate": field("optimizer.learning_rate", "-1e-3", "must be positive"),
    "rate nan": field("optimizer.learning_rate", "nan", "must be positive"),
    "rate inf": field("optimizer.learning_rate", "inf", "must be positive"),
    "width 0": field("model.width", "0", "config.model.width is 0.* positive"),
    "dropout 1": field("model.dropout", "1", "at least 0 and less than 1"),
    "dropout nan": field("model.dropout", "nan", "at least 0 and less than 1"),
    "seed -1": field("seed", "-1", "config.seed is -1; it must lie between 0"),
    "one fold": field("data.num_folds", "1", "num_folds is 1; it must lie between 2"),
    "fold": field("data.fold", "9", "config.data.fold"),
    "rotation": field("augmentation.rotation", "720", "lie between 0 and 180"),
    "flip": field("augmentation.flip_horizontal", "maybe", "flip_horizontal=maybe"),
    "zoom": field("view.zoom", "2", "set config.view.kind to 'whole'"),
    "crop": field("view.kind", "crop", "set config.method.name to 'two_stage'"),
    "groups": (
        "nine groups of four tasks",
        1,
        "config.method.num_groups is 9; it must be from 1 to",
        train(
            "--config.method.num_groups=9",
            config="configs/default.py:random_grouping",
        ),
    ),
    "misspelt": field("model.encodr", "vgg13", "names a field that the config do", 2),
    "misspelt part": field("modle.encoder", "vgg13", "names a field that the c", 2),
    "no data": field("data.dataset", "no/256px", "There is no data set 'no/256px'"),
    "data upwards": field("data.dataset", "../../etc", "There is no data set"),
    "no data folder": field("data.data_dir", "/nowhere", "There is no data set"),
    "no weights": field("model.pretrained", "/nowhere", "no imported weights|no data"),
    "no file": (
        "a config that is not there",
        2,
        "There is no config file",
        train(config="configs/no.py"),
    ),
    "word": (
        "configs/refuge.py:pcgard",
        2,
        "no word 'pcgard'; choose from",
        train(config="configs/refuge.py:pcgard"),
    ),
    "two methods": (
        "configs/default.py:pcgrad,gradnorm",
        2,
        "two methods; choose one",
        train(config="configs/default.py:pcgrad,gradnorm"),
    ),
    "no Python": (
        "a config that is no Python",
        2,
        "it is not Python",
        written("def get_config(:\n"),
    ),
    "no function": (
        "a config without get_config",
        2,
        "it has no function get_config",
        written("batch_size = 8\n"),
    ),
    "of another program": (
        "a config of another program",
        1,
        "configs/default.py lists all fields",
        written(
            "import ml_collections\n\n\ndef get_config():\n"
            "    return ml_collections.ConfigDict({'lr': 1.0})\n"
        ),
    ),
}


def command(verb, *flags):
    """A command whose flags name the case's own folder, and the photographs'."""
    return lambda place: [
        verb,
        *(flag.format(own=place.own, source=place.source) for flag in flags),
    ]


def predict(images, output="{own}/new"):
    return command("predict", f"--images={images}", f"--output={output}")


def imported(output):
    source = "--source={source}/eye0.png"
    return command(
        "import_weights", source, "--architecture=vgg13", f"--output={output}"
    )


def synthetic(*flags):
    return command(
        "prepare_data", "--dataset=synthetic_fundus", "--data_dir={own}/new", *flags
    )


FLAGS = {
    "unknown": ("--wrokdir", 1, "flag 'wrokdir'", train("--wrokdir=x")),
    "argument": ("train fast", 2, "unknown argument 'fast'", train("fast")),
    "no config": (
        "train without --config",
        1,
        "Flag --config must have a value",
        command("train", "--workdir={own}/new"),
    ),
    "no workdir": (
        "train without --workdir",
        1,
        "Flag --workdir must have a value",
        command("train", "--config=configs/default.py"),
    ),
    "empty workdir": (
        "train --workdir=",
        2,
        "--workdir is empty",
        command("train", "--config=configs/default.py", "--workdir="),
    ),
    "verb": (
        "mtl-jax tarin",
        2,
        "'tarin' is not a command; choose from",
        command("mtl-jax", "tarin"),
    ),
    "no verb": ("mtl-jax", 0, "^used: mtl-jax COMMAND", command("mtl-jax")),
    "version": (
        "mtl-jax --version",
        0,
        r"^used: mtl_jax \d",
        command("mtl-jax", "--version"),
    ),
    "data set": (
        "--dataset=x",
        1,
        "--dataset=x",
        command("prepare_data", "--dataset=x"),
    ),
    "no data set": ("prepare_data", 1, "--dataset", command("prepare_data")),
    "no source": (
        "fundus_folder without --source",
        1,
        "--source is missing",
        command("prepare_data", "--dataset=fundus_folder"),
    ),
    "size 100": (
        "--image_size=100",
        1,
        "multiple of 16",
        synthetic("--image_size=100"),
    ),
    "size 0": ("--image_size=0", 1, "multiple of 16", synthetic("--image_size=0")),
    "size -32": (
        "--image_size=-32",
        1,
        "multiple of 16",
        synthetic("--image_size=-32"),
    ),
    "size x": ("--image_size=x", 1, "--image_size=x", synthetic("--image_size=x")),
    "count x": (
        "--num_images=1,x,3",
        1,
        "whole numbers",
        synthetic("--num_images=1,x,3"),
    ),
    "two counts": (
        "--num_images=1,2",
        1,
        "numbers of synthetic images are \(1, 2\)",
        synthetic("--num_images=1,2"),
    ),
    "count -1": (
        "--num_images=-1,2,3",
        1,
        "numbers of synthetic images are",
        synthetic("--num_images=-1,2,3"),
    ),
    "fraction": (
        "--glaucoma_fraction=2",
        1,
        "fraction",
        synthetic("--glaucoma_fraction=2"),
    ),
    "shape": ("--shape=round", 1, "--shape=round", synthetic("--shape=round")),
    "no images": ("no photograph", 1, "holds no image file", predict("{own}")),
    "images absent": (
        "a folder that is not there",
        1,
        "does not exist",
        predict("{own}/no"),
    ),
    "glob": ("a glob that nothing fits", 1, "No file matches", predict("{own}/*.png")),
    "output /": ("--output=/", 1, "whole file system", imported("/")),
    "output .": ("--output=.", 1, "is the current folder", imported(".")),
    "output here": (
        "--output with the weights in it",
        1,
        "which is used here; name another output folder",
        imported("{source}"),
    ),
    "format": (
        "--format=dicom",
        1,
        "--format=dicom",
        command("predict", "--images=x", "--output={own}/new", "--format=dicom"),
    ),
    "workdir twice": (
        "--workdir=a,a",
        1,
        "names a folder twice",
        command("evaluate", "--workdir={own}/a,{own}/a"),
    ),
    "empty entry": (
        "--workdir=a,,b",
        1,
        "has an empty entry",
        command("evaluate", "--workdir=a,,b"),
    ),
    "resolution": (
        "--resolution=4k",
        1,
        "--resolution=4k",
        command("evaluate", "--workdir={own}", "--resolution=4k"),
    ),
    "architecture": (
        "--architecture=vgg19",
        1,
        "--architecture=vgg19",
        command(
            "import_weights", "--source=a.pth", "--architecture=vgg19", "--output=x"
        ),
    ),
}

CASES = [
    Case(name, given, expected, code, make, kind)
    for kind, group in {"config": CONFIGS, "flag": FLAGS}.items()
    for name, (given, code, expected, make) in group.items()
]
