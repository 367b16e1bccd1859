"""Private names of torch: in one file, and each does what it is there for."""

import ast
from pathlib import Path

import pyro
import pytest
import torch

import pyro_fcr
from pyro_fcr import _torch

ROOT = Path(pyro_fcr.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "_torch.py")


def private(name):
    parts = name.split(".")
    hidden = [part for part in parts if part.startswith("_") and not part.endswith("__")]
    return parts[0] == "torch" and (hidden or "experimental" in parts)


def names_of_torch(code):
    """Names of torch that a file imports, and the attributes that it takes of them."""
    tree, known = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname or a.name.split(".")[0]: a.asname and a.name for a in node.names}
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            if first in known:
                yield ".".join([known[first] or first, *rest])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_file_names_what_is_private_to_torch(path):
    assert [name for name in names_of_torch(path.read_text()) if private(name)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch._standard_gamma(theta).sum()",
        "import torch as tt\ntt._C",
        "import torch._dynamo",
        "from torch.fx.experimental.proxy_tensor import make_fx",
        "from torch.utils import _pytree",
        "from torch.distributions import Distribution\nDistribution._validate_args",
    ],
)
def test_a_private_name_is_seen(code):
    assert any(private(name) for name in names_of_torch(code))


def test_a_step_is_recorded_and_asks_whether_it_is():
    asked = []

    def double(x):
        asked.append(_torch.get_proxy_mode() is not None)
        return 2 * x

    graph = _torch.make_fx(double)(torch.ones(2))
    assert asked == [True]
    assert _torch.get_proxy_mode() is None
    assert torch.equal(graph(torch.tensor([1.0, 3.0])), torch.tensor([2.0, 6.0]))


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda x: x.sum().item() * x, _torch.DataDependentOutputException),
        (lambda x: x[x > 0], _torch.DynamicOutputShapeException),
    ],
)
def test_tensors_without_values_refuse_what_needs_values(function, error):
    with _torch.FakeTensorMode(allow_non_fake_inputs=True) as without_values:
        x = without_values.from_tensor(torch.ones(2))
        assert (x + 1).shape == (2,)
        with pytest.raises(error):
            function(x)


def test_trees_of_tensors():
    tree = {"a": torch.ones(2), "b": {"c": torch.zeros(1), "d": 3}}
    assert [leaf is tree["a"] for leaf in _torch.tree_leaves(tree)] == [True, False, False]
    mapped = _torch.tree_map_only(torch.Tensor, torch.clone, tree)
    assert mapped["b"]["d"] is tree["b"]["d"]
    assert mapped["a"] is not tree["a"]


def test_whether_distributions_validate():
    for value in (True, False):
        with pyro.validation_enabled(is_validate=value):
            assert _torch.validates_by_default() is value


def test_operations_are_seen_and_replaced():
    class Ones(_torch.OperationMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            return torch.ones_like(found) if function is torch.ops.aten.randn.default else found

    with Ones():
        assert torch.equal(2 * torch.randn(3), torch.full((3,), 2.0))


def test_the_compiler_knows_the_option_of_the_same_noise():
    config = pytest.importorskip("torch._inductor.config")
    assert _torch.SAME_NOISE == {"fallback_random": True}
    assert config.fallback_random is False


def test_old_versions_do_not_compile_the_noise_of_eager_mode(monkeypatch):
    for version, compiles in {
        "2.6.0": False,
        "2.10.1+cu128": False,
        "2.11.0": True,
        "3.0": True,
    }.items():
        monkeypatch.setattr(torch, "__version__", version)
        assert _torch.compiles_noise() is compiles


def test_a_fused_step_is_skipped_where_told():
    found = torch.zeros(())
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], fused=True)
    _torch.skip_where(optimizer, found)
    for bad, moves in ((1.0, False), (0.0, True)):
        before = weight.detach().clone()
        weight.grad = torch.ones(2)
        found.fill_(bad)
        optimizer.step()
        assert bool((weight != before).any()) is moves


def test_noise_goes_on_after_a_recording_that_failed(monkeypatch):
    class Generator(torch.Generator):
        def graphsafe_set_state(self, state):
            self.put = state

    generator = Generator().manual_seed(3)
    monkeypatch.setattr(torch.cuda, "default_generators", (None, generator))
    _torch.end_recorded_noise(torch.device("cpu"))
    _torch.end_recorded_noise(torch.device("cuda:1"))
    assert generator.put is not generator
    assert generator.put.initial_seed() == 3
    assert hasattr(torch.Generator, "graphsafe_set_state")


def test_sums_over_processes_are_recorded():
    """In one process; tests of several processes compare what comes out."""
    here = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=here, rank=0, world_size=1)
    try:
        graph = _torch.make_fx(_torch.sum_of_processes)(torch.ones(2))
        assert "all_reduce" in graph.code
        assert torch.equal(graph(torch.tensor([1.0, 3.0])), torch.tensor([1.0, 3.0]))
    finally:
        torch.distributed.destroy_process_group()


def test_every_name_is_tried_here():
    tried = Path(__file__).read_text()
    assert [name for name in _torch.__all__ if f"_torch.{name}" not in tried] == []
