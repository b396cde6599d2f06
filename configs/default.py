"""All fields with their defaults; mtl_jax/configuration/defaults.py explains them.

Any field can be set on the command line, for example with
--config.optimizer.learning_rate=1e-3. A word after a colon is a method, such as
configs/default.py:pcgrad.
"""

from mtl_jax.configuration import defaults


def get_config(words=""):
    return defaults.apply_words(defaults.get_config(), words, {})
