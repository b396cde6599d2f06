"""Strategies that damage files, and make what people and programs write wrongly."""

from hypothesis import strategies as st

from mtl_jax.errors import UserError

# What is found where a number, a name or a word belongs.
ODD_TEXTS = [
    *("", " ", "0", "1", "-1", "2", "1.0", "0,5", "812,5", "1e3", "1e999", "-1e999"),
    *("nan", "NaN", "inf", "-inf", "9" * 400, "0x10", "1_000", "١٢", "½", "−3", "+3"),
    *("None", "null", "true", "FALSE", "yes", "TRAIN", "valid", "testing", "od"),
    *("..", ".", "/", "../a.png", "/etc/passwd", "~", "C:\\a.png", "a\\b", "a/b/"),
    *("a.png", "b.png", "A.PNG", "absent.png", "x" * 300, "é" * 120, "a\x00b", "left"),
    *("=1+1", "@a", "'a", '"', "a;b", "a,b", "a\tb", "a\nb", "a\r", "\ufeffa"),
    *("眼", "e\u0301", "é", "🙂", "\u2028", "$a_{", "%s", "{0}", "NUL", "a\x1bb"),
    *("a.b", "items", "__class__", "name"),
]
# What is found in JSON; Python writes the last three, too.
ODD_VALUES = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 10**30, 10**400, -(10**400)),
    *([], {}, [[]], [1, 2], ["a"], {"a": 1}, {"name": []}, {"": 0}),
    *(float("nan"), float("inf"), -float("inf")),
]

_DAMAGE = ("bit", "byte", "cut", "zero", "insert", "double", "end")

odd_texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=8)
odd_values = st.sampled_from(ODD_VALUES) | odd_texts | st.floats() | st.integers()


@st.composite
def damaged(draw, content, most=4):
    """Bytes in which up to `most` places are changed, cut, doubled or filled."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(content)))
        stop = min(start + draw(st.sampled_from((1, 2, 8, 64))), len(content))
        kind = draw(st.sampled_from(_DAMAGE))
        if kind == "bit" and start < stop:
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            length = stop - start
            content[start:stop] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "cut":
            del content[start:stop]
        elif kind == "zero":
            content[start:stop] = bytes(stop - start)
        elif kind == "insert":
            content[start:start] = draw(st.binary(max_size=8))
        elif kind == "double":
            content[start:start] = content[start:stop]
        elif kind == "end":
            del content[start:]
    return bytes(content)


def places(value, path=()):
    """The paths to all values in nested dicts and lists."""
    yield path
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*path, key))


@st.composite
def changed(draw, value, values=odd_values, most=3):
    """A copy of nested dicts and lists with odd, absent, renamed or further entries."""
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(list(places(value))))
        kind = draw(st.sampled_from(("set", "set", "set", "drop", "rename", "add")))
        value = _changed(draw, value, path, kind, values)
    return value


def _changed(draw, value, path, kind, values):
    if not path:
        if kind == "add" and isinstance(value, dict):
            return {**value, draw(odd_texts): draw(values)}
        if kind == "add" and isinstance(value, list):
            return [*value, draw(values)]
        return draw(values) if kind == "set" else value
    key, *rest = path
    value = value.copy()
    if rest or kind in ("set", "add"):
        value[key] = _changed(draw, value[key], tuple(rest), kind, values)
    elif kind == "drop" or isinstance(value, list):
        del value[key]
    else:
        value[draw(odd_texts)] = value.pop(key)
    return value


@st.composite
def unlike(draw, names):
    """A name like others: in another case, with blanks, doubled, cut."""
    name = draw(st.sampled_from(names))
    return draw(
        st.sampled_from(
            [name.upper(), f" {name} ", name + name[-1:], name[1:], name.title()]
        )
    )


def outcome(function, *args):
    """What a function returns, and the sentence if it refuses what it is given."""
    try:
        return function(*args), ""
    except UserError as refusal:
        sentence = str(refusal)
    assert is_readable(sentence)
    return None, sentence


def is_readable(text):
    """Whether a message says something, and is not as long as what was read."""
    return bool(text.strip()) and "Traceback" not in text and len(text) < 20_000
