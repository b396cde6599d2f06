"""Multi-task learning of glaucoma assessment with one optax state per task."""
