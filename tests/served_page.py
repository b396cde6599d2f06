"""A page that this process serves, of `untrained_network`: a pytest plugin."""

import contextlib
import json
import pathlib
import threading
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.synthetic import renderer

SIZES = {"left.png": (240, 300), "right.jpg": (260, 240)}


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Drawn fundi, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, (name, size) in enumerate(SIZES.items()):
        rng, camera = np.random.default_rng(index), renderer.EVALUATION_CAMERA
        drawn = renderer.render(rng, size, camera, bool(index)).photograph
        Image.fromarray(drawn).save(folder / name)
    (folder / "letter.txt").write_text("not a picture")
    return folder


class Client:
    """Asks a page as a browser would."""

    def __init__(self, address):
        self.address = address

    def ask(self, path, method="GET", body=None, headers=None):
        """The status and the body of the answer, as JSON if it is JSON."""
        request = urllib.request.Request(
            f"{self.address}/{path}", body, headers or {}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                status, content = answer.status, answer.read()
                kind = answer.headers["content-type"]
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
            kind = error.headers["content-type"]
        is_json = kind == "application/json"
        return status, json.loads(content) if is_json else content

    def upload(self, path):
        name = urllib.parse.quote(path.name)
        return self.ask(f"photographs?name={name}", "POST", path.read_bytes())

    def correct(self, one, **changes):
        """Saves a correction of a photograph that was described by the page."""
        said = {
            "version": one["version"],
            "fovea": one["fovea"],
            "glaucoma": None,
            "masks": {},
        }
        body = json.dumps({**said, **changes}).encode()
        return self.ask(f"photographs/{one['id']}/correction", "PUT", body)


@contextlib.contextmanager
def _served(workdir, place, kept=None, **options):
    import uvicorn

    from mtl_jax.serving import address
    from mtl_jax.serving.app import create_app
    from mtl_jax.serving.session import Session

    listener = address.listen("127.0.0.1", 0)
    app = create_app(
        Session([workdir], place, kept), frozenset({"127.0.0.1"}), **options
    )
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=running.run, args=[[listener]])
    thread.start()
    try:
        yield Client(address.address_of(listener))
    finally:
        running.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def serve(network_folder, tmp_path_factory):
    """A context of a page, with a folder of corrections if one is named."""

    @contextlib.contextmanager
    def start(corrected=None, **options):
        from mtl_jax.serving import corrections

        place = tmp_path_factory.mktemp("session")
        with contextlib.ExitStack() as stack:
            kept = None
            if corrected is not None:
                opened = corrections.opened(pathlib.Path(corrected))
                kept = stack.enter_context(opened)
            served = _served(network_folder, place, kept, **options)
            yield stack.enter_context(served)

    return start
