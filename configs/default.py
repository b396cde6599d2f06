"""Every field of a config with its default: see mtl_jax/configuration/defaults.py.

From the command line any field can be set, for example
--config.optimizer.learning_rate=1e-3. Words behind a colon are methods, such as
configs/default.py:pcgrad.
"""

from mtl_jax.configuration import defaults


def get_config(words=""):
    return defaults.apply_words(defaults.get_config(), words, {})
