"""Times training steps: [--methods=vanilla,independent] [--image_sizes=64] ....

It measures every combination of the lists; see mtl_jax/experiments/benchmark.py. With
--target=tpu:v5e:2x2 or --target=cpu it compiles the steps for that TPU or a CPU, and
reads memory, arithmetic and all-reduces from the programs
(mtl_jax/experiments/compilation.py). With --aggregators=all, or the names of some, it
times these methods' aggregators alone, beside TorchJD's where that is installed. With
--layers it times the network's convolutions one by one.
"""

import itertools
import multiprocessing
import pathlib
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any

from absl import flags

from mtl_jax.commands import _compilation_cache, _flags
from mtl_jax.errors import UserError, missing_extra

if TYPE_CHECKING:
    from mtl_jax.experiments import benchmark

METHODS = flags.DEFINE_list(
    "methods",
    [
        "vanilla",
        "independent",
        "alternating",
        "random_grouping",
        "pcgrad",
        "gradnorm",
        "per_task",
    ],
    "Methods to time, or all; also gradnorm_stacked, independent_unrolled and "
    "pcgrad_vmap.",
)
ENCODERS = flags.DEFINE_list("encoders", ["vgg13"], "Some of vgg13, vgg16, resnet34.")
WIDTH = flags.DEFINE_float(
    "width", 1.0, "Multiplier of the number of channels.", lower_bound=1e-3
)
IMAGE_SIZES = flags.DEFINE_list("image_sizes", ["64"], "Image sizes, pixels a side.")
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["8"], "Batch sizes, in images.")
DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Some of float32, bfloat16.")
AGGREGATORS = flags.DEFINE_list(
    "aggregators", [], "Methods whose aggregators to time without a network, or all."
)
LAYERS = flags.DEFINE_bool(
    "layers", False, "Times the passes of each 3x3 convolution of the network alone."
)
COMPARE = flags.DEFINE_enum(
    "compare",
    None,
    ["torch"],
    "torch times PyTorch's forms of an MTL-IO step, or its layers, beside ours, on the "
    "same machine.",
)
REMAT = flags.DEFINE_bool("remat", False, "As config.model.remat.")
DEVICES = flags.DEFINE_list(
    "devices",
    ["1"],
    "Numbers of devices that share a batch. CPUs are simulated, each number in a "
    "process of its own.",
)
STEPS_PER_DISPATCH = flags.DEFINE_list(
    "steps_per_dispatch", ["1"], "Numbers of steps that one call makes."
)
MEMORY = flags.DEFINE_list(
    "memory", ["host"], "host, device or both: where the images lie before a step."
)
TARGET = flags.DEFINE_string(
    "target",
    None,
    "cpu, or tpu:TOPOLOGY, such as tpu:v5e:2x2: compile the step for these devices, "
    "which need not be there, with --batch_sizes images for each, and run nothing.",
)
STEPS = flags.DEFINE_integer(
    "steps", 3, "Timed steps or calls in each of 3 rounds.", lower_bound=1
)
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
# The compilation is timed too, so no programs are kept.
flags.set_default(_compilation_cache.FOLDER, "")

_OF_STEPS = (METHODS, DTYPES, REMAT, DEVICES, STEPS_PER_DISPATCH, MEMORY, TARGET)
_ONE_DEVICE = (
    "--methods has independent_unrolled, a step for one device; leave it out with {}."
)


def main() -> None:
    """Prints a table and writes the results."""
    if OUTPUT.value:
        _check_output(pathlib.Path(OUTPUT.value))
    if AGGREGATORS.value:
        _time_aggregators()
    elif LAYERS.value:
        _time_layers()
    else:
        _time_steps()


def _check_output(path: pathlib.Path) -> None:
    """Raises a UserError before the measurement, which can take long."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder of --output={path} cannot be made ({error.strerror}); name "
            "another file."
        ) from error
    if path.is_dir():
        raise UserError(f"--output={path} is a folder; name a file.")


def _write(results: Sequence[dict[str, Any]]) -> None:
    from mtl_jax import files

    if OUTPUT.value:
        files.write_json(pathlib.Path(OUTPUT.value), results)


def _time_aggregators() -> None:
    from mtl_jax import methods
    from mtl_jax.experiments import aggregator_benchmark as benchmark

    names = _flags.all_or_some(AGGREGATORS, methods.AGGREGATORS)
    of_networks = (ENCODERS, WIDTH, IMAGE_SIZES, BATCH_SIZES, LAYERS, COMPARE)
    _refuse("--aggregators times them without a network", *of_networks, *_OF_STEPS)
    results = []
    for num_tasks, width in benchmark.SETTINGS:
        results += benchmark.measure(names, num_tasks, width, 3 * STEPS.value)
    _write(results)
    print(benchmark.table(results))


def _time_layers() -> None:
    import jax

    from mtl_jax.experiments import layer_benchmark

    _refuse("--layers times single convolutions", *_OF_STEPS)
    if jax.default_backend() != "cpu":
        raise UserError(
            "--layers times programs for CPUs; run it with JAX_PLATFORMS=cpu."
        )
    _check_networks()
    others = None
    if COMPARE.value:
        others = _torch_steps().convolution_passes
    results = []
    for setting in _settings([]):
        results += layer_benchmark.measure(setting, 3 * STEPS.value, others)
        _write(results)
    print(layer_benchmark.table(results))


def _refuse(reason: str, *others: flags.FlagHolder) -> None:
    """Raises a UserError if one of the flags is given."""
    for flag in others:
        if flag.present:
            raise UserError(f"{reason}; leave out --{flag.name}.")


def _check_networks() -> None:
    """Raises a UserError for encoders, and image sizes that do not fit them."""
    from mtl_jax.models import encoders

    _flags.check_list(ENCODERS, encoders.ENCODERS)
    for encoder, size in itertools.product(
        ENCODERS.value, _flags.whole_numbers(IMAGE_SIZES)
    ):
        stride = encoders.ENCODERS[encoder].stride
        if size < 32 or size % stride:
            raise UserError(
                f"--image_sizes has {size}, which does not fit {encoder}; name a "
                f"multiple of {stride}, at least 32."
            )


def _torch_steps() -> Any:
    try:
        from mtl_jax.experiments import torch_steps
    except ModuleNotFoundError as error:
        raise UserError(
            "--compare=torch needs PyTorch; install it with pip install torch."
        ) from error
    return torch_steps


def _time_steps() -> None:
    from mtl_jax.experiments import benchmark, benchmark_table

    names = _flags.all_or_some(METHODS, benchmark.REGISTERED, benchmark.METHODS)
    _check_networks()
    _flags.check_list(DTYPES, ["float32", "bfloat16"])
    _flags.check_list(MEMORY, ["host", "device"])
    if TARGET.value:
        _compile_steps(TARGET.value, names)
        return
    others = None
    if COMPARE.value:
        if "resnet34" in ENCODERS.value:
            raise UserError("--compare=torch has no resnet34; name VGG encoders.")
        others = _torch_steps().programs
    results, rates = [], {}
    for setting in _settings(names):
        reading = setting.image_size, setting.batch_size
        if reading not in rates:
            rates[reading] = _input_rates(*reading)
        results += _measure(setting, names, others, rates[reading])
        _write(results)
    print(benchmark_table.table(results))


def _settings(names: Sequence[str]) -> "list[benchmark.Setting]":
    from mtl_jax.experiments import benchmark

    settings = []
    for encoder, size, batch, dtype, devices, dispatch, memory in itertools.product(
        ENCODERS.value,
        _flags.whole_numbers(IMAGE_SIZES),
        _flags.whole_numbers(BATCH_SIZES),
        DTYPES.value,
        _flags.whole_numbers(DEVICES),
        _flags.whole_numbers(STEPS_PER_DISPATCH),
        MEMORY.value,
    ):
        if min(batch, devices) < 1 or batch % devices:
            raise UserError(
                f"--batch_sizes has {batch}, and --devices has {devices}; give each "
                "device the same number of images, at least 1."
            )
        if dispatch < 1:
            raise UserError(
                f"--steps_per_dispatch has {dispatch}; name whole numbers from 1 on."
            )
        settings.append(
            benchmark.Setting(
                encoder,
                WIDTH.value,
                size,
                batch,
                dtype,
                REMAT.value,
                devices,
                dispatch,
                memory,
            )
        )
    if "independent_unrolled" in names and any(s.devices > 1 for s in settings):
        raise UserError(_ONE_DEVICE.format("--devices"))
    return settings


def _input_rates(image_size: int, batch_size: int) -> dict[str, float] | None:
    # A bare machine with an accelerator may not have the extra `data`.
    try:
        from mtl_jax.experiments import input_speed

        return input_speed.images_per_second(image_size, batch_size)
    except ModuleNotFoundError as error:
        if missing_extra(error):
            return None
        raise


def _measure(
    setting: "benchmark.Setting",
    names: Sequence[str],
    others: Any,
    rates: Mapping[str, float] | None,
) -> list[dict[str, Any]]:
    import jax

    from mtl_jax.experiments import benchmark

    if setting.devices > 1 and jax.default_backend() == "cpu":
        context = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(1, context) as process:
            return process.submit(
                benchmark.measure_simulated, setting, names, STEPS.value, rates
            ).result()
    if setting.devices > jax.device_count():
        raise UserError(
            f"--devices has {setting.devices}, and this machine {jax.device_count()}."
        )
    one = others if setting.devices == 1 else None
    return benchmark.measure(setting, names, STEPS.value, one, rates)


def _compile_steps(target: str, names: Sequence[str]) -> None:
    from mtl_jax.experiments import compilation

    if "independent_unrolled" in names:
        raise UserError(_ONE_DEVICE.format("--target"))
    if COMPARE.value:
        raise UserError(
            "--compare times programs, and --target runs none; leave out one of them."
        )
    _refuse("--target says how many devices there are", DEVICES)
    _refuse("--target compiles single steps", STEPS_PER_DISPATCH, MEMORY)
    targets = compilation.devices(target)
    results = []
    for setting, name in itertools.product(_settings(names), names):
        results.append(compilation.compile_step(setting, name, targets))
        _write(results)
    print(compilation.table(results))
