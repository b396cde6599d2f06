"""Reads compiled programs: the text of their HLO, and what XLA counted."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import jax

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4}
_BYTES |= {"u32": 4, "f64": 8, "s64": 8, "u64": 8}

# In the text of CPUs and TPUs, and as the calls of libraries on GPUs and CPUs.
_PRODUCT = re.compile(r' (convolution|dot)\(|custom_call_target="[^"]*\$(conv|gemm)')


def memory_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the memory of a device that a program needs, arguments included."""
    memory = compiled.memory_analysis()
    assert memory is not None, "CPUs, GPUs and TPUs have it"
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def flops(compiled: jax.stages.Compiled) -> float | None:
    """Returns the arithmetic of a program on a device, as XLA counts it.

    XLA counts the body of a loop once. So the result is None for a program that has
    convolutions or products in a loop. Those that visit the tasks one by one have, and
    on a CPU those with large and deep layers (`convolution.conv_3x3`).
    """
    text, costs = compiled.as_text(), compiled.cost_analysis()
    assert text is not None, "CPUs, GPUs and TPUs have it"
    assert costs is not None, "CPUs, GPUs and TPUs have them"
    return None if has_product_in_loop(text) else costs["flops"]


def has_product_in_loop(program: str) -> bool:
    """Tells whether a loop of a program (HLO text) has convolutions or products."""
    parts, _ = _computations(program)

    @functools.cache
    def multiplies(part: str) -> bool:
        return any(
            _PRODUCT.search(line) or any(map(multiplies, _called(line)))
            for line in parts.get(part, ())
        )

    return any(
        any(map(multiplies, _called(line)))
        for lines in parts.values()
        for line in lines
        if " while(" in line
    )


@dataclasses.dataclass(frozen=True)
class AllReduces:
    """The all-reduces that one step executes on a device.

    Attributes:
      count: how many, those of a loop once for each of its rounds, of the larger one
        where there is a choice.
      num_bytes: what they reduce, likewise.
      num_async: how many have a start and an end, between which the device computes.
    """

    count: int = 0
    num_bytes: int = 0
    num_async: int = 0

    def __add__(self, other: "AllReduces") -> "AllReduces":
        return AllReduces(
            self.count + other.count,
            self.num_bytes + other.num_bytes,
            self.num_async + other.num_async,
        )

    def __mul__(self, times: int) -> "AllReduces":
        return AllReduces(
            self.count * times, self.num_bytes * times, self.num_async * times
        )


def all_reduces(program: str) -> AllReduces:
    """Counts the all-reduces that a compiled program (HLO text) executes."""
    parts, entry = _computations(program)

    def count(part: str) -> AllReduces:
        total = AllReduces()
        for line in parts.get(part, ()):
            if found := re.search(r"= (.*?) all-reduce(-start)?\(", line):
                total += AllReduces(1, _num_bytes(found[1]), int(bool(found[2])))
            elif body := re.search(r" while\(.*body=%?([\w.-]+)", line):
                total += count(body[1]) * _rounds(line, parts)
            elif " conditional(" in line:
                branches = map(count, _called(line))
                total += max(branches, key=lambda branch: branch.num_bytes)
            elif re.search(r" (fusion|call)\(", line):
                total = sum(map(count, _called(line)), total)
        return total

    return count(entry)


def _rounds(loop: str, parts: dict[str, list[str]]) -> int:
    """How often a loop's body is executed; 1 where that is not known."""
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(told[1])
    # TPUs do not tell. The loop of a scan ends at the number in its condition.
    condition = re.search(r"condition=%?([\w.-]+)", loop)
    lines = "\n".join(parts.get(condition[1], ()) if condition else ())
    last = re.findall(r"= s32\[\]\S* constant\((\d+)\)", lines)
    return int(last[0]) if len(last) == 1 and "direction=LT" in lines else 1


def _num_bytes(shapes: str) -> int:
    return sum(
        _BYTES.get(dtype, 0) * math.prod(int(n) for n in sides.split(",") if n)
        for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation, and the name of the first to run."""
    parts: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif name:
            parts[name].append(line)
    return parts, entry


def _called(line: str) -> Iterator[str]:
    """Names of the computations that an instruction calls."""
    roles = "calls|body|to_apply|branch_computations|(?:true|false)_computation"
    for names in re.findall(rf"(?:{roles})=(\{{.*?\}}|%?[\w.-]+)", line):
        yield from re.findall(r"[\w.-]+", names)
