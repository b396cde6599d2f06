"""Times the scan over tasks against a Python loop: [--image_size=64] [--width=1]."""

from absl import flags

from mtl_jax import cli

ENCODER = flags.DEFINE_enum("encoder", "vgg13", ["vgg13", "vgg16"], "Of the network.")
WIDTH = flags.DEFINE_float("width", 1.0, "Multiplier of the channels.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "Pixels a side.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images in a batch.")
STEPS = flags.DEFINE_integer("steps", 3, "Timed steps in each of three rounds.")


def main() -> None:
    """Prints compile and step times, and their ratio."""
    from mtl_jax.experiments import benchmark

    results = benchmark.compare_scan_with_loop(
        ENCODER.value, WIDTH.value, IMAGE_SIZE.value, BATCH_SIZE.value, STEPS.value
    )
    for name, times in results.items():
        print(
            f"{name}: {times['step_seconds']:.3f} s a step, "
            f"{times['compile_seconds']:.1f} s to compile and run the first"
        )
    ratio = results["scan"]["step_seconds"] / results["loop"]["step_seconds"]
    print(f"scan / loop: {ratio:.3f}")


if __name__ == "__main__":
    cli.run(main)
