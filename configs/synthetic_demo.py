"""MTL-IO on a small synthetic data set, as scripts/demo.sh runs it."""

from configs import default


def get_config():
    config = default.get_config()
    config.data.data_dir = "demo/data"
    config.data.dataset = "synthetic_fundus/96px-240-60-100-glaucoma0.4"
    config.model.encoder = "vgg13"
    config.model.width = 0.125
    config.batch_size = 8
    config.num_epochs = 15
    config.validate_every = 3
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    return config
