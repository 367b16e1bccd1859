"""Model folders that somebody made to do harm: nothing is executed, nothing written outside."""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path

import torch

from pyro_fcr import FCR
from pyro_fcr.saving import folder as saving

_FORBIDDEN = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"}


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def sign(place, **changes):
    """Change the record of a model and make all its digests fit."""
    record = json.loads((place / "model.json").read_text())
    for key, value in changes.items():
        record[key] = {**record[key], **value} if isinstance(value, dict) else value
    for each in record["files"].values():
        path = place / each["name"]
        if path.is_file():
            each["sha256"] = saving._digest(path.read_bytes())
    record["sha256"] = saving._digest_of(record)
    (place / "model.json").write_text(json.dumps(record))


def first_format(place, weights):
    record = json.loads((place / "model.json").read_text())
    kept = {k: v for k, v in record.items() if k not in ("files", "sha256", "replaces")}
    (place / "model.json").write_text(json.dumps({**kept, "format": 1}))
    (place / "weights.pt").write_bytes(weights)


def pickled(canary, *, by_torch=False):
    if not by_torch:
        return pickle.dumps(Payload(canary))
    buffer = io.BytesIO()
    torch.save({"model": Payload(canary), "guide": {}}, buffer)
    return buffer.getvalue()


def put(place, name, data):
    (place / name).write_bytes(data)
    sign(place)


def relink(place, name, victim):
    (place / name).unlink()
    (place / name).symlink_to(victim)
    if name != "model.json":
        sign(place)


def files(**parts):
    return {part: {"name": str(name), "sha256": "0" * 64} for part, name in parts.items()}


def header(text):
    return struct.pack("<Q", len(text)) + text


_OVERLAP = b'{"model.a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'

MALICE = {
    "pickle in weights.pt": lambda m, v, c: first_format(m, pickled(c)),
    "torch.save of a pickle": lambda m, v, c: first_format(m, pickled(c, by_torch=True)),
    "pickle as safetensors": lambda m, v, c: put(m, "weights.safetensors", pickled(c)),
    "pickle as history": lambda m, v, c: put(m, "history.csv", pickled(c)),
    "pickle as split": lambda m, v, c: put(m, "split.csv.gz", gzip.compress(pickled(c))),
    "pickle as model.json": lambda m, v, c: (m / "model.json").write_bytes(pickled(c)),
    "a file above": lambda m, v, c: sign(m, files=files(weights=f"../{v.name}")),
    "a file elsewhere": lambda m, v, c: sign(m, files=files(weights=v.absolute())),
    "weights are a link": lambda m, v, c: relink(m, "weights.safetensors", v),
    "history is a link": lambda m, v, c: relink(m, "history.csv", v),
    "model.json is a link": lambda m, v, c: relink(m, "model.json", v),
    "replaces files elsewhere": lambda m, v, c: sign(m, replaces=[f"../{v.name}", str(v)]),
    "programs of os": lambda m, v, c: sign(m, programs={"model": "os.system", "guide": "os._exit"}),
    "code as labels": lambda m, v, c: sign(
        m, registry={"agents": [f"__import__('os').system('touch {c}')"]}
    ),
    "code as settings": lambda m, v, c: sign(m, architecture={"__class__": "os.system"}),
    "endless sizes": lambda m, v, c: sign(m, architecture={"n_hidden": 10**12}),
    "deep JSON": lambda m, v, c: (m / "model.json").write_text('{"format":' + "[" * 10**6),
    "long header": lambda m, v, c: put(m, "weights.safetensors", b"\xff" * 7 + b"\x7f" + b"{}"),
    "tensors beyond the end": lambda m, v, c: put(m, "weights.safetensors", header(_OVERLAP)),
    "weights are a pipe": lambda m, v, c: (
        (m / "weights.safetensors").unlink(), os.mkfifo(m / "weights.safetensors"),
    ),
    "a folder in its own place": lambda m, v, c: (shutil.rmtree(m), m.symlink_to(m)),
}  # fmt: skip


def attack(model, tmp, name):
    """Load, and save over, one malicious folder; return what went wrong, nothing if all is well."""
    place, victim, canary = tmp / "m", tmp / "victim", tmp / "canary"
    shutil.copytree(model, place)
    victim.write_bytes((model / "model.json").read_bytes())
    MALICE[name](place, victim, canary)
    seen = _watched(lambda: _use(place, model), within=place)
    if canary.exists():
        seen.append("executed")
    if not victim.is_file() or victim.read_bytes() != (model / "model.json").read_bytes():
        seen.append("wrote outside")
    if extra := {path.name for path in tmp.iterdir()} - {"m", "victim"}:
        seen.append(f"made {extra}")
    return seen


def _use(place, model):
    for act in (
        lambda: FCR.load(place),
        lambda: FCR.load(model).save(place, overwrite=True),
    ):
        try:
            act()
        except (ValueError, OSError) as error:
            if "\n" in str(error):
                raise AssertionError(f"more than a line: {error}") from error


def _watched(act, *, within):
    """Run something and return what it did that a model must not do."""
    seen, active = [], [True]

    def watch(event, arguments):
        if not active[0]:
            return
        if event in _FORBIDDEN:
            seen.append(event)
        if event in ("os.rename", "os.remove", "os.mkdir", "os.symlink", "os.rmdir"):
            path = Path(os.fsdecode(arguments[1 if event == "os.rename" else 0]))
            if within.name not in (path.name, path.parent.name, path.name.split(".")[1:2][0]
                                   if path.name.startswith(".") else ""):  # fmt: skip
                seen.append(f"{event} {path}")

    sys.addaudithook(watch)  # it cannot be taken away again
    try:
        act()
    finally:
        active[0] = False
    return seen


def malice(model, tmp):
    """Try all; return what went wrong by name."""
    found = {}
    for number, name in enumerate(MALICE):
        each = tmp / f"malice{number}"
        each.mkdir()
        if wrong := attack(model, each, name):
            found[name] = wrong
    return found
