from mtl_jax.experiments import input_speed


def test_both_ways_to_read_are_timed(monkeypatch):
    monkeypatch.setattr(input_speed, "NUM_IMAGES", 4)
    monkeypatch.setattr(input_speed, "SECONDS", 0.05)
    rates = input_speed.images_per_second(image_size=32, batch_size=2)
    assert rates.keys() == {"from_memory", "from_files"}
    assert min(rates.values()) > 0
