"""Times training steps: [--compare=loop|backward|methods] [--image_size=64]."""

from absl import flags

from mtl_jax import cli

COMPARE = flags.DEFINE_enum(
    "compare",
    "loop",
    ["loop", "backward", "methods"],
    "MTL-IO as a scan and a loop; backward passes in a scan and a vmap; all methods.",
)
ENCODER = flags.DEFINE_enum("encoder", "vgg13", ["vgg13", "vgg16"], "Of the network.")
WIDTH = flags.DEFINE_float("width", 1.0, "Multiplier of the channels.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "Pixels a side.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images in a batch.")
STEPS = flags.DEFINE_integer("steps", 3, "Timed steps in each of three rounds.")


def main() -> None:
    """Prints compile and step times, and their ratios."""
    from mtl_jax.experiments import benchmark

    results = benchmark.compare(
        COMPARE.value,
        ENCODER.value,
        WIDTH.value,
        IMAGE_SIZE.value,
        BATCH_SIZE.value,
        STEPS.value,
    )
    first = next(iter(results))
    for name, times in results.items():
        ratio = results[first]["step_seconds"] / times["step_seconds"]
        print(
            f"{name}: {times['step_seconds']:.3f} s a step, "
            f"{times['compile_seconds']:.1f} s to compile and run the first; "
            f"{first} / {name}: {ratio:.3f}"
        )


if __name__ == "__main__":
    cli.run(main)
