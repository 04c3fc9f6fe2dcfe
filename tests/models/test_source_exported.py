"""Exported programs: the same logits as torch.export's own loading gives, with real layers, and nothing of a file run."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import io
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.nn import functional

from oracles.as_user import refused
from oracles.console import pinch
from pinchpoint.bound import lipschitz
from pinchpoint.data import DataConfig, load
from pinchpoint.errors import CheckpointError, ModelError
from pinchpoint.models.export.operations import ALLOWED
from pinchpoint.models.sources.open_model import open_model


class Net(nn.Module):
    """Layers of every kind, a shared one, weights that are no layer's, and the size of the batch in a view."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2, output_padding=1, dilation=2)
        self.group = nn.GroupNorm(2, 6)
        self.twice = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("shift", torch.rand(6))
        self.head = nn.Linear(6, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, x):
        x = functional.gelu(self.group(self.up(self.depthwise(self.stem(x)))))
        x = functional.adaptive_avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm(self.twice(torch.relu(self.twice(x))) * self.scale + self.shift)
        position = torch.arange(6, device=x.device).to(x.dtype)
        first, second = (x + position).chunk(2, dim=1)
        return self.head(torch.cat([first, second], 1).view(x.shape[0], -1, 6).mean(1))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


def exported(path, net, batch=2, free=False, shape=(3, 8, 8)):
    """The network as a .pt2."""
    path.write_bytes(_exported(net, batch, free, shape))
    return path


@functools.cache
def _exported(net, batch, free, shape):
    dims, buffer = ({0: Dim("batch")},) if free else None, io.BytesIO()
    torch.export.save(export(net, (torch.rand(batch, *shape),), dynamic_shapes=dims), buffer)
    return buffer.getvalue()


def rewritten(path, **changes):
    """The archive with other contents of some of its files: bytes, None to leave it out, or a function of the JSON."""
    with zipfile.ZipFile(path) as old:
        content = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    for name, change in changes.items():
        if callable(change):
            parsed = json.loads(content[name])
            change(parsed)
            content[name] = json.dumps(parsed).encode()
        else:
            content[name] = change
    with zipfile.ZipFile(path, "w") as new:
        for name, data in content.items():
            if data is not None:
                new.writestr(f"net/{name}", data)
    return path


MODEL, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)


@pytest.mark.parametrize("free", [False, True])
def test_the_same_logits_from_real_layers(tmp_path, net, free):
    source = open_model(str(exported(tmp_path / "net.pt2", net, free=free)))
    assert (source.input_shape, source.classes, source.normalisation, source.config) == ((3, 8, 8), 5, None, None)
    chunks = () if free else ("it was exported for batches of 2, so others run in chunks of 2",)
    assert source.notes == (
        "the layers are those that torch.export wrote to net.pt2; nothing else in it was read",
        *chunks,
        "the file does not say how inputs are normalised, so it is given pixels in [0, 1]",
    )
    theirs = torch.export.load(tmp_path / "net.pt2").module()
    for batch in (2,) if not free else (1, 2, 5):
        x = torch.rand(batch, 3, 8, 8)
        torch.testing.assert_close(source.model(x), theirs(x))
    x = torch.rand(5, 3, 8, 8, requires_grad=True)
    torch.testing.assert_close(source.model(x), net(x))
    assert torch.autograd.grad(source.model(x).sum(), x)[0].abs().min(dim=0).values.sum() > 0
    network = source.model if free else source.model.network
    kinds = {name: type(module) for name, module in network.named_modules() if list(module.parameters(recurse=False))}
    assert kinds == {
        "": type(network),
        "stem.0": nn.Conv2d,
        "stem.1": nn.BatchNorm2d,
        "depthwise": nn.Conv2d,
        "up": nn.ConvTranspose2d,
        "group": nn.GroupNorm,
        "twice": nn.Linear,
        "attention.in_proj": nn.Linear,
        "attention.out_proj": nn.Linear,
        "norm": nn.LayerNorm,
        "head": nn.Linear,
    }
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in net.parameters())
    assert not any(module.training for module in source.model.modules())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_same_bounds_as_of_the_network_that_was_exported(tmp_path, norm):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    theirs = nn.Sequential(*layers).eval()
    ours = open_model(str(exported(tmp_path / "net.pt2", theirs, free=True))).model
    expected, found = (
        lipschitz(one, norm=norm, method="fast", input_shape=(3, 8, 8), budget_s=60.0) for one in (theirs, ours)
    )
    assert found.upper == pytest.approx(expected.upper, rel=1e-12)
    assert 0 < found.lower <= expected.upper


def test_a_graph_for_one_sample_takes_batches_where_that_is_the_same(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    source = open_model(str(exported(tmp_path / "net.pt2", net, batch=1)), (8, 8), "mean=0.5,std=0.25")
    assert len(source.notes) == 2
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(source.model(x), net((x - 0.5) / 0.25))
    assert source.normalisation == "mean 0.5, std 0.25"


def test_sizes_it_was_not_exported_for(tmp_path, net):
    path = exported(tmp_path / "net with space, é.pt2", net)
    with refused(
        ModelError, f"{path} takes inputs of 3x8x8, as it was exported, but got 3x9x9; choose another --input-size."
    ):
        open_model(str(path), (9, 9))


def test_what_no_network_for_inference_is(tmp_path, net):
    class Two(nn.Module):
        def forward(self, x):
            return x, x + 1

    class Noisy(nn.Module):
        def forward(self, x):
            return x.flatten(1) + torch.rand(3)

    inference = "export model.eval(), without run_decompositions"
    for network, text in (
        (Two(), "it must return one tensor, but got 2 outputs; export a network that returns its logits alone."),
        (
            nn.Sequential(nn.Flatten(), nn.Dropout()),
            f"it must be a network for inference, but got torch.ops.aten.dropout.default in training; {inference}.",
        ),
        (
            Noisy(),
            "a graph from a file may use the common operations of inference only, but got torch.ops.aten.rand.default; "
            f"{inference}, or give your code as py:MODULE:FACTORY.",
        ),
    ):
        path = exported(tmp_path / "net.pt2", network, shape=(3,))
        with refused(CheckpointError, f"{path}: {text}"):
            open_model(str(path))


# --- hostile archives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["sample", "weight", "old weights", "constant", "opaque"])
def test_nothing_is_unpickled(tmp_path, net, trap, trapped, where):
    path = exported(tmp_path / "net.pt2", net)
    bomb = pickle.dumps(trapped)
    buffer = io.BytesIO()
    torch.save(trapped, buffer)

    def pickled(config, name="scale"):
        config["config"][name]["use_pickle"] = True

    def opaque(config):
        config["config"]["x"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    changes = {
        "sample": {"data/sample_inputs/model.pt": buffer.getvalue()},
        "weight": {WEIGHTS: pickled, **{f"data/weights/weight_{number}": buffer.getvalue() for number in range(30)}},
        "old weights": {WEIGHTS: None, "data/weights/model.pt": buffer.getvalue()},
        "constant": {CONSTANTS: None, "data/constants/model.pt": buffer.getvalue()},
        "opaque": {CONSTANTS: opaque, "data/constants/opaque_obj_0": bomb},
    }[where]
    rewritten(path, **changes)
    if where == "sample":
        assert open_model(str(path)).classes == 5  # it is not looked at
    else:
        with pytest.raises(CheckpointError, match=r"must hold a graph and plain numbers, as nothing in a file is run"):
            open_model(str(path))
    assert not trap()


RUN = "__import__('os').environ.__setitem__('PINCHPOINT_TRAP', 'fired')"


def _calls(target):
    def change(program):
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change


def _guards(program):
    program["guards_code"] = [RUN]


def _names_as_code(program):
    text = json.dumps(program["graph_module"])
    program["graph_module"] = json.loads(text.replace('"x"', json.dumps(f"x):\n    {RUN}\n    def y(z")))


def _sizes_as_code(program):
    for value in program["graph_module"]["graph"]["tensor_values"].values():
        value["sizes"] = [{"as_expr": {"expr_str": RUN, "hint": {"as_int": 2}}}, *value["sizes"][1:]]


def _paths_as_code(program):
    for spec in program["graph_module"]["signature"]["input_specs"]:
        if "parameter" in spec:
            spec["parameter"]["parameter_name"] = f"a.b\n{RUN}"


def _specs_as_code(program):
    entry = {
        "type": "builtins.dict",
        "context": {"__enum__": True, "fqn": "os:system", "name": "true"},
        "children_spec": [],
    }
    program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, entry])


def _words_as_code(program):
    for node in program["graph_module"]["graph"]["nodes"]:
        for item in node["inputs"]:
            if "as_string" in item["arg"]:
                item["arg"]["as_string"] = f"')\n    {RUN}\n#"


@pytest.mark.parametrize(
    "change",
    [
        _calls("torch.os.system"),
        _calls("torch.ops.aten.from_file.default"),
        _calls("torch.ops.aten.__class__.__init__"),
        _calls("_operator.methodcaller"),
        _calls("torch.hub.load"),
        _calls("#x:y"),
        _guards,
        _names_as_code,
        _sizes_as_code,
        _paths_as_code,
        _specs_as_code,
        _words_as_code,
    ],
)
def test_nothing_is_run(tmp_path, net, trap, change):
    path = rewritten(exported(tmp_path / "net.pt2", net), **{MODEL: change})
    with contextlib.suppress(CheckpointError):
        open_model(str(path))
    assert not trap()
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.parametrize("change", [None, _sizes_as_code])
def test_torch_itself_would_run_it(tmp_path, net, trap, trapped, change):
    """What all this is for: torch.export.load runs what is in the file."""
    buffer = io.BytesIO()
    torch.save((trapped,), buffer)
    changes = {"data/sample_inputs/model.pt": buffer.getvalue()} if change is None else {MODEL: change}
    path = rewritten(exported(tmp_path / "net.pt2", net), **changes)
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert trap()


def _larger(config):
    for payload in config["config"].values():
        payload["tensor_meta"]["sizes"] = [{"as_int": 10**6}] * len(payload["tensor_meta"]["sizes"])


def _repeated(config):
    for payload in config["config"].values():
        meta = payload["tensor_meta"]
        meta["sizes"], meta["strides"] = [{"as_int": 10**6}] * len(meta["sizes"]), [{"as_int": 0}] * len(meta["sizes"])


def _beyond(config):
    config["config"]["scale"]["tensor_meta"]["storage_offset"] = {"as_int": 1}


@pytest.mark.parametrize("change", [_larger, _repeated, _beyond])
def test_tensors_larger_than_their_bytes(tmp_path, net, change):
    path = rewritten(exported(tmp_path / "net.pt2", net), **{WEIGHTS: change})
    with pytest.raises(
        CheckpointError, match=r"must be a whole \.pt2 archive, as torch.export.save writes it, but got "
    ):
        open_model(str(path))


def test_a_graph_that_would_fill_the_memory(tmp_path):
    class Large(nn.Module):
        def forward(self, x):
            return x.flatten(1).repeat(1, 2).sum(1, keepdim=True).expand(2, 4)

    def huge(program):
        for node in program["graph_module"]["graph"]["nodes"]:
            for item in node["inputs"]:
                if item["name"] == "repeats":
                    item["arg"] = {"as_ints": [10**6, 10**6]}

    path = rewritten(exported(tmp_path / "net.pt2", Large(), shape=(3,)), **{MODEL: huge})
    with refused(
        CheckpointError,
        f"{path} must run in 4 GB for one batch of 2, but got more; export a smaller model, or one for batches of any size.",
    ):
        open_model(str(path))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_archives(tmp_path, net, share):
    path = exported(tmp_path / "net.pt2", net)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"must be a whole \.pt2 archive"):
        open_model(str(path))


def test_archives_that_are_packed_or_something_else(tmp_path, net):
    path = exported(tmp_path / "net.pt2", net)
    rule = f"{path} must be a whole .pt2 archive, as torch.export.save writes it, but got "
    remedy = "; export the model again, with torch 2.8 or later."
    rewritten(path, **{MODEL: None})
    with refused(CheckpointError, f"{rule}an archive without models/model.json{remedy}"):
        open_model(str(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("net/models/model.json", b" " * 10**8)
    with refused(CheckpointError, f"{rule}net/models/model.json compressed{remedy}"):
        open_model(str(path))
    with zipfile.ZipFile(path, "w") as compiled:
        compiled.writestr("net/data/aotinductor/model/x.so", b"")
    with pytest.raises(CheckpointError, match="but got compiled code; "):
        open_model(str(path))
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with refused(CheckpointError, f"{rule}an archive without models/model.json{remedy}"):
        open_model(str(path))
    path.write_bytes(b"[" * 10**6)
    with pytest.raises(CheckpointError):
        open_model(str(path))


def test_deeply_nested_json(tmp_path, net):
    path = rewritten(exported(tmp_path / "net.pt2", net), **{MODEL: b"[" * 10**6})
    with pytest.raises(CheckpointError, match=r"must be a whole \.pt2 archive"):
        open_model(str(path))


def test_every_operation_that_is_allowed_is_one():
    assert [name for name in sorted(ALLOWED) if not hasattr(getattr(torch.ops.aten, name, None), "overloads")] == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs pinchpoint[vision]")
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"])
def test_networks_of_timm(tmp_path, name):
    from pinchpoint.utils.torchvision import import_torchvision

    import_torchvision()
    import timm

    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    x = torch.rand(3, 3, 224, 224)
    for free in (False, True):
        source = open_model(str(exported(tmp_path / "net.pt2", net, 2, free, (3, 224, 224))))
        with torch.inference_mode():
            torch.testing.assert_close(source.model(x), net(x))
        assert sum(p.numel() for p in source.model.parameters()) == sum(p.numel() for p in net.parameters())


# --- inputs of other dtypes, batches of one size, and what is no classifier of one input -----------------------------------


def small(dtype):
    """A convolutional network for digits, in that dtype."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    return nn.Sequential(*layers).eval().to(dtype)


def saved(path, network, *inputs, free=False):
    """The network as a .pt2, exported for these inputs."""
    dims = ({0: Dim("batch")},) if free else None
    torch.export.save(export(network, inputs, dynamic_shapes=dims), path)
    return path


REAL = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize(("batch", "free"), [(1, False), (8, False), (2, True)])
@pytest.mark.parametrize("dtype", REAL)
def test_pixels_become_what_a_program_was_exported_for(tmp_path, dtype, batch, free):
    network = small(dtype)
    path = saved(tmp_path / "net.pt2", network, torch.rand(batch, 1, 8, 8, dtype=dtype), free=free)
    source = open_model(str(path), normalize="mean=0.5,std=0.25")
    x = torch.rand(11, 1, 8, 8)
    logits, expected = source.model(x), network(((x - 0.5) / 0.25).to(dtype))
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, expected)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    name = str(dtype).removeprefix("torch.")
    said = f"it was exported for inputs of {name}, so pixels are converted to that"
    assert (said in source.notes) == (dtype != torch.float32)
    doubled = copy.deepcopy(source.model).double()  # as bounds take it
    torch.testing.assert_close(doubled(x.double()), copy.deepcopy(network).double()((x.double() - 0.5) / 0.25))


class Pixels(nn.Module):
    """Takes images as files have them, whole numbers up to 255."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(x.flatten(1).float() / 255)


class Words(nn.Module):
    """Takes numbers of words."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.words(x).mean(1))


@pytest.mark.parametrize(
    ("network", "dtype"),
    [(Pixels(), dtype) for dtype in (torch.uint8, torch.int8, torch.int32, torch.bool)] + [(Words(), torch.int64)],
)
def test_programs_for_whole_numbers_are_refused(tmp_path, network, dtype):
    path = saved(tmp_path / "net.pt2", network, torch.zeros(2, 64, dtype=dtype))
    text = (
        f"{path}: its input must be of float16, bfloat16, float32 or float64, but got one of "
        f"{str(dtype).removeprefix('torch.')}; export the network for float32 images in [0, 1], its conversion from other "
        "numbers left out."
    )
    with refused(CheckpointError, text):
        open_model(str(path))


def test_programs_of_complex_numbers_are_refused(tmp_path):
    path = saved(tmp_path / "net.pt2", nn.Linear(3, 2, dtype=torch.complex64), torch.zeros(2, 3, dtype=torch.complex64))
    with refused(
        CheckpointError,
        f"{path} must hold tensors of real or whole numbers, but got weight of complex64; "
        "give your code as py:MODULE:FACTORY.",
    ):
        open_model(str(path))


class Returns(nn.Module):
    """A network that returns what a function makes of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


X = torch.rand(2, 3)


@pytest.mark.parametrize(
    ("function", "inputs", "text"),
    [
        (
            lambda x, y: x + y,
            (X, X),
            "it must take one tensor, but got 2 inputs; export a network of one input, a batch.",
        ),
        (
            lambda x, k: x * k,
            (X, 2.0),
            "it must take one tensor, but got an input of the kind constant_input; export a",
        ),
        (
            lambda x: x.sin(),
            (X[0, 0],),
            "it must take a batch of inputs, but got an input without dimensions; export a",
        ),
        (lambda x: (x, x + 1), (X,), "it must return one tensor, but got 2 outputs; export a network that returns its"),
        (lambda x: {"a": x, "b": x + 1}, (X,), "it must return one tensor, but got 2 outputs; export a network that"),
        (
            lambda x: (x, x.shape[0]),
            (X,),
            "it must return one tensor, but got 2 outputs; export a network that returns",
        ),
        (lambda _: 3, (X,), "it must return one tensor, but got an output that is no tensor; export a network that"),
        (lambda _: None, (X,), "it must return one tensor, but got an output that is no tensor; export a network that"),
    ],
)
def test_what_is_no_classifier_of_one_input(tmp_path, function, inputs, text):
    path = saved(tmp_path / "net.pt2", Returns(function), *inputs)
    with pytest.raises(CheckpointError) as caught:
        open_model(str(path))
    assert str(caught.value).startswith(f"{path}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_commands_take_programs_of_other_dtypes(tmp_path, dtype):
    network, digits = small(dtype), load(DataConfig(name="digits"))
    path = saved(tmp_path / "net.pt2", network, torch.rand(1, 1, 8, 8, dtype=dtype))
    known = ("--normalize", "none")
    judged = ("--data", "digits", "--samples", 12, "--threat", "linf:0.05")
    attacked = pinch("attack", path, *judged, "--attack", "fgsm", "--curve", 0, *known, "--json")
    assert attacked.status == 0, attacked.err
    clean = (network(digits.x_test[:12].to(dtype)).argmax(1) == digits.y_test[:12]).double().mean()
    assert json.loads(attacked.out)["clean_accuracy"] == pytest.approx(float(clean))
    for command in (("profile", path), ("bound", path, *known), ("audit", path, *judged, "--quick", *known, "--json")):
        out = () if command[0] != "audit" else ("--out", tmp_path / "audit")
        said = pinch(*command, *out)
        assert said.status == 0, said.err
        assert "inputs of " in said.err


def test_commands_refuse_programs_for_whole_numbers(tmp_path):
    path = saved(tmp_path / "net.pt2", Pixels(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    judged = ("--data", "digits", "--normalize", "none")
    for command in (("profile", path), ("bound", path), ("attack", path, *judged), ("audit", path, *judged)):
        assert "but got one of uint8; export the network for float32 images" in pinch(*command).error
