"""Models that the user's own code makes: that it is run and said so, and one sentence for each way it can fail."""

from __future__ import annotations

import sys
from textwrap import dedent

import pytest
import torch

from oracles.as_user import refused
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.models.sources.open_model import open_model

NET = """
    import torch
    from torch import nn
    def make():
        print("hello")
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5))
    def described():
        return make(), {"input_shape": (3, 2, 2), "normalize": "mean=0.5,std=0.25"}
    class Nets:
        make = staticmethod(make)
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Writes a module into the working directory; it and the path are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)

    def write(text, name="own_net"):
        file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(dedent(text))
        return f"py:{name}"

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("own"):
            del sys.modules[name]


def test_the_code_is_run_and_that_is_said(code, capsys):
    torch.manual_seed(7)
    rng = torch.random.get_rng_state()
    source = open_model(f"{code(NET)}:make", (3, 2, 2))
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert (source.input_shape, source.classes, source.normalisation) == ((3, 2, 2), 5, None)
    assert source.notes == (
        "your own code was run to make this model: make of own_net",
        "nothing says how its inputs are normalised, so it is given pixels in [0, 1]",
    )
    assert capsys.readouterr() == ("", "hello\n")
    assert not any(module.training for module in source.model.modules())
    x = torch.rand(4, 3, 2, 2)
    again = open_model("py:own_net:Nets.make", (2, 2))
    assert again.input_shape == (3, 2, 2)
    assert torch.equal(again.model(x), source.model(x))


def test_what_the_code_says_about_its_model(code):
    spec = code(NET)
    x = torch.rand(4, 3, 2, 2)
    plain, source = open_model(f"{spec}:make", (2, 2)), open_model(f"{spec}:described")
    assert (source.input_shape, source.normalisation) == ((3, 2, 2), "mean 0.5, std 0.25")
    assert source.notes[1] == "inputs are pixels in [0, 1], normalised as you say: mean 0.5, std 0.25"
    torch.testing.assert_close(source.model(x), plain.model((x - 0.5) / 0.25))
    torch.testing.assert_close(open_model(f"{spec}:described", normalize="none").model(x), plain.model(x))
    with refused(ModelError, "py:own_net:described takes images of 3 channels, but got 1x2x2; use 3x2x2."):
        open_model(f"{spec}:described", (1, 2, 2))


def test_packages_import_their_neighbours_now_and_later(code):
    code("WIDTH = 5", "own_package.sizes")
    spec = code(
        """
        from torch import nn
        from own_package.sizes import WIDTH
        class Late(nn.Linear):
            def forward(self, x):
                import own_helper
                return super().forward(x.flatten(1)) * own_helper.ONE
        def make():
            return Late(4, WIDTH)
        """,
        "own_package.nets",
    )
    code("ONE = 1", "own_helper")
    before = list(sys.path)
    assert open_model(f"{spec}:make", (1, 2, 2)).classes == 5
    assert sys.path[: len(before)] == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def make():\n    return 1 / 0", "ZeroDivisionError: division by zero (own_net.py, line 2)"),
        (
            "import torch\ndef make():\n    return torch.eye(2) @ torch.eye(3)",
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x2 and 3x3) (own_net.py, line 3)",
        ),
        ("def make(:", "SyntaxError: invalid syntax (own_net.py, line 1) (own_net.py, line 1)"),
        ("raise SystemExit(0)", "SystemExit: 0 (own_net.py, line 1)"),
        ("import own_other", "ModuleNotFoundError: No module named 'own_other' (own_net.py, line 1)"),
        ("class Odd(BaseException): pass\nraise Odd", "Odd: no word about it (own_net.py, line 2)"),
        ("make = 3", "TypeError: 'int' object is not callable"),
        ("", "AttributeError: module 'own_net' has no attribute 'make'"),
        ("def make(width):\n    pass", "TypeError: make() missing 1 required positional argument: 'width'"),
    ],
)
def test_code_that_fails(code, text, said):
    spec = code(text)
    with refused(ModelError, f"the code of {spec}:make must run, but got {said}; mend it."):
        open_model(f"{spec}:make", (2, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def make():\n    return 3",
            "make of own_net must return an nn.Module, or one and a mapping about it, but got a int; return the model.",
        ),
        (
            "from torch import nn\ndef make():\n    return nn.ReLU(), {'mean': 3}",
            "what make of own_net says about its model is input_shape and normalize, but got mean; leave it out.",
        ),
        (
            "from torch import nn\ndef make():\n    return nn.ReLU(), {'input_shape': 'x'}",
            "input_shape must be whole numbers, for example (3, 32, 32), but got x; mend it.",
        ),
        (
            "from torch import nn\ndef make():\n    return nn.Linear(3, 2)",
            "py:own_net:make must take inputs of 3x2x2, but got mat1 and mat2 shapes cannot be multiplied (6x2 and 3x2); "
            "choose another --input-size.",
        ),
    ],
)
def test_what_is_no_model(code, text, said):
    spec = code(text)
    with refused(ModelError, said):
        open_model(f"{spec}:make", (2, 2))


def test_names_that_are_none(code, tmp_path):
    spec = code(NET)
    with refused(
        ConfigError,
        f"somebody must say what size the inputs of {spec}:make have, but got no size; give --input-size, for "
        "example 3x32x32.",
    ):
        open_model(f"{spec}:make")
    with refused(
        ConfigError,
        f"the module of py:own_gone.x:make must be importable from here, but got no module own_gone in {tmp_path}; check "
        "the name, or go where it is.",
    ):
        open_model("py:own_gone.x:make", (2, 2))
    for odd in ("py:", "py:own_net", "py:own_net:", "py:../own_net:make", "py:own_net:make()"):
        with refused(
            ConfigError,
            "a model from your own code is py:MODULE:FACTORY, where FACTORY() returns an nn.Module, but got "
            f"{odd}; write for example py:my_package.models:make.",
        ):
            open_model(odd)
