"""The annotations that a photograph may have. Importing it imports nothing else."""

# In the order of the columns of `has_label`, with the key of each in a batch.
ANNOTATIONS = {
    "glaucoma": "glaucoma",
    "disc": "disc_mask",
    "cup": "cup_mask",
    "fovea": "fovea_xy",
}
LABELS = tuple(ANNOTATIONS)
