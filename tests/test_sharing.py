"""The card of a saved model, and its way to a hub and back: a small server on this machine."""

import base64
import hashlib
import importlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import SCHEMA, simulate

from pyro_fcr import FCR, Architecture
from pyro_fcr.saving import BrokenModelError

NAMES = {"README.md", "history.csv", "model.json", "split.csv.gz", "weights.safetensors"}


@pytest.fixture(scope="module")
def fcr():
    adata = simulate(400, 12)
    lacking = (adata.obs["drug"] == "drug2") & (adata.obs["line"] == "line1")
    model = FCR(adata[~lacking], SCHEMA, architecture=Architecture(n_tx=2, n_hidden=8))
    model.fit(max_epochs=2, align_at=None, progress=False)
    return model


def test_the_card_tells_data_design_checks_questions_and_limits(fcr, tmp_path):
    fcr.notes = "Cells of *nobody*."
    folder = fcr.save(tmp_path / "m")
    assert {path.name for path in folder.iterdir()} == NAMES
    card = (folder / "README.md").read_text()
    for said in (
        "Cells of *nobody*.",
        f"- {fcr.source(None).n_obs} cells",
        "12 genes (counts)",
        "- treatments (`drug`; control: `control`): `drug1`, `drug2`",
        "- contexts (`line`): `line0`, `line1`, `line2`",
        "- pairs that training lacked: `drug2 in line1`",
        "- n_hidden: 8",
        f"- held-out ELBO: {fcr.history['heldout/elbo'].max():.2f} nats per cell",
        "- 2 epochs: all epochs done",
    ):
        assert said in card, said
    headings = ["Data", "Design", "Checks", "Questions", "Limits", "Versions"]
    assert re.findall(r"^## (.+)$", card, flags=re.MULTILINE) == headings
    scope = {}
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0]
    exec(code.replace('"."', repr(str(folder))), scope)  # what it tells to run, runs
    assert scope["cells"].n_vars == 12
    assert scope["fcr"].notes == fcr.notes
    again = scope["fcr"].save(tmp_path / "again")
    assert (again / "README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_the_card_is_of_its_model(fcr, tmp_path):
    folder = fcr.save(tmp_path / "m")
    record = json.loads((folder / "model.json").read_text())
    card = folder / "README.md"
    assert record["files"]["card"]["sha256"] == hashlib.sha256(card.read_bytes()).hexdigest()
    card.write_text(card.read_text() + "Works for everything.\n")
    with pytest.raises(BrokenModelError, match=r"README\.md is damaged or of another model"):
        FCR.load(folder)


def test_a_replaced_model_leaves_no_card_and_a_foreign_readme_stays(fcr, tmp_path):
    folder = fcr.save(tmp_path / "m")
    (folder / "README.md").write_text("edited, and not lost")
    for notes in ("a", "b"):
        fcr.notes = notes
        fcr.save(folder, overwrite=True)
        assert (folder / "README.md").read_text() == "edited, and not lost"
    (folder / "README.md").unlink()
    assert len(list(folder.glob("README*.md"))) == 1
    assert len(list(folder.iterdir())) == len(NAMES)
    (folder / "README.md").write_text("mine")
    fcr.save(folder, overwrite=True)
    assert (folder / "README.md").read_text() == "mine"
    assert FCR.load(folder).notes == "b"


def test_names_of_labels_stay_on_their_line(tmp_path):
    adata = simulate(300, 6)
    adata.obs["drug"] = adata.obs["drug"].replace({"drug1": "a`b\n# head"})
    card = (FCR(adata, SCHEMA).save(tmp_path / "m") / "README.md").read_text()
    assert "`a'b # head`, `drug2`" in card
    assert "- never fitted" in card


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a client needs that uploads and downloads a folder."""

    store, commits = {}, []

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/repos/create"):
            asked = json.loads(raw)
            private = asked.get("private") or asked.get("visibility") == "private"
            self.commits.append(("create", asked["name"], private))
            self.answer({"url": f"http://{self.headers['Host']}/lab/screen"})
        elif "/preupload/" in self.path:
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": each["path"], **regular} for each in json.loads(raw)["files"]]
            self.answer({"files": files})
        elif self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        else:
            for line in map(json.loads, raw.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.store[value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/lab/screen/commit/{'1' * 40}"
            self.answer({"commitUrl": url, "commitOid": "1" * 40})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if "/resolve/" in path:
            data = self.store.get(path.rsplit("/", 1)[-1])
            self.answer(data, status=404 if data is None else 200)
        elif "/tree/" in path:
            tree = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in self.store.items()
            ]
            self.answer(tree)
        else:
            names = [{"rfilename": name} for name in self.store]
            self.answer({"id": "lab/screen", "sha": "1" * 40, "siblings": names})

    def answer(self, content, status=200):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub", reason="pip install 'pyro-fcr[hub]'")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    Hub.store, Hub.commits = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_goes_to_a_hub_and_comes_back(fcr, endpoint):
    url = fcr.push_to_hub("lab/screen", private=True, token="hf_none", endpoint=endpoint)
    assert url == f"{endpoint}/lab/screen/commit/{'1' * 40}"
    assert Hub.commits == [("create", "screen", True)]
    assert set(Hub.store) >= NAMES
    back = FCR.from_hub("lab/screen", token="hf_none", endpoint=endpoint)
    asked = {"n_cells": 5, "covariates": {"line": "line0"}, "seed": 3}
    mine, theirs = (each.predict("drug1", **asked) for each in (fcr, back))
    np.testing.assert_array_equal(mine.X.toarray(), theirs.X.toarray())


def test_a_damaged_download_is_told(fcr, endpoint):
    fcr.push_to_hub("lab/screen", token="hf_none", endpoint=endpoint)
    Hub.store["weights.safetensors"] = Hub.store["weights.safetensors"][:-1] + b"?"
    with pytest.raises(BrokenModelError, match="weights.safetensors is damaged"):
        FCR.from_hub("lab/screen", token="hf_none", endpoint=endpoint)


def test_without_huggingface_hub_a_line_says_what_to_install(fcr, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-fcr\[hub\]'"):
        fcr.push_to_hub("lab/screen")
