"""A study file is validated whole: what is wrong is said in one sentence, and nothing else happens."""

from __future__ import annotations

from itertools import product

import pytest
from pydantic import ValidationError

from pinchpoint.compress import L1, GroupLasso, NuclearNorm, Sum
from pinchpoint.errors import ConfigError
from pinchpoint.recipes.recipe import PenaltyConfig
from pinchpoint.study import catalogue, parse, read


def sentence(text: str, where: str = "s.yaml") -> str:
    """What parsing complains of; always one line of the family's form."""
    with pytest.raises(ConfigError) as caught:
        parse(text, where)
    said = str(caught.value)
    assert "\n" not in said
    assert ", but got " in said
    assert "; " in said
    assert said.endswith(".")
    assert "Error" not in said.replace("Value error", "Error")
    return said


UNKNOWN_KEYS = [
    ({"stuyd": 1}, "s.yaml: every key must be known, but got stuyd; perhaps study is meant."),
    ({"families/0/gird": {}}, "s.yaml: every key must be known, but got families.0.gird; perhaps grid is meant."),
    ({"base/modle": {}}, "s.yaml: family 'lasso': every key must be known, but got modle; perhaps model is meant."),
    (
        {"base/train/epoch": 3},
        "s.yaml: family 'lasso': every key must be known, but got train.epoch; perhaps epochs is meant.",
    ),
    (
        {"base/audit/threats/1/nrom": "l2"},
        "s.yaml: family 'lasso': every key must be known, but got audit.threats.1.nrom; perhaps norm is meant.",
    ),
    (
        {"families/1/fixed": {"penalty.nuclear": 1}},
        "s.yaml: family 'rank': every key must be known, but got penalty.nuclear; perhaps nuclear_norm is meant.",
    ),
    (
        {"families/1/grid": {"penalty.grouplasso": [0, 1]}},
        "s.yaml: family 'rank': every key must be known, but got penalty.grouplasso; perhaps group_lasso is meant.",
    ),
    (
        {"families/1/grid": {"zzz": [0, 1]}},
        "s.yaml: family 'rank': every key must be known, but got zzz; known here: data, model, penalty, "
        "constant_frobenius, frobenius_scale, frobenius_ball, spectral_ball, adversarial, train, device, threads, "
        "transfer, compress, surrogate, audit.",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), UNKNOWN_KEYS, ids=lambda value: str(value)[:40])
def test_unknown_key_is_named_with_its_place_and_the_closest_known_one(edited, changes, expected):
    assert sentence(edited(changes)) == expected


BAD_VALUES = [
    ({"seeds": []}, "s.yaml, seeds: seeds must be one or more distinct numbers from 0 to 2**32 - 1, but got []"),
    ({"seeds": [1, 2, 1]}, "distinct numbers from 0 to 2**32 - 1, but got [1, 2, 1]"),
    ({"seeds": [-1]}, "from 0 to 2**32 - 1, but got [-1]"),
    ({"seeds": [2**32]}, "from 0 to 2**32 - 1, but got [4294967296]"),
    ({"seeds": 3}, "s.yaml: seeds: Input should be a list, but got 3"),
    ({"families": []}, "s.yaml: a study needs families with distinct names, but got []"),
    ({"families/1/name": "lasso"}, "a study needs families with distinct names, but got ['lasso', 'lasso']"),
    ({"families/0/grid": {}}, "families.0: the grid of family 'lasso' must hold values, but got no key"),
    (
        {"families/0/grid": {"penalty.l1": [1], "model.rank": []}},
        "the grid of family 'lasso' must hold values, but got no value for model.rank",
    ),
    ({"families/0/grid": {"penalty.l1": 0.1}}, "families.0.grid.penalty.l1: Input should be a list, but got 0.1"),
    ({"families/1/labels": ["full"]}, "family 'rank' needs one label a level, 2 in all, but got 1; give 2 labels"),
    ({"families/1/labels": ["full", [2]]}, "families.1.labels.1: Input should be text (put it in quotes), but got [2]"),
    ({"families/0/view": "both"}, "families.0.view: Input should be 'neuron' or 'spectral', but got 'both'"),
    ({"study": "two words"}, "study: Input should be letters, digits, - and _"),
    ({"base/audit/threats/0/eps": -0.1}, "audit.threats.0.eps: Input should be greater than or equal to 0, but got -0"),
    (
        {"base/audit/threats/0/curve": [-0.1]},
        "audit.threats.0: eps must be zero or more, and finite in float32, but got -0",
    ),
    ({"base/audit/threats/0/eps": float("nan")}, "audit.threats.0.eps: Input should be"),
    ({"base/audit/threats/0/norm": "l7"}, "audit.threats.0.norm: Input should be 'linf', 'l2' or 'l1', but got 'l7'"),
    ({"base/audit/threats": []}, "audit.threats: threats must name at least one norm, and each once"),
    ({"base/audit/threats/1/norm": "linf"}, "threats must name at least one norm, and each once"),
    ({"base/audit/steps": 0}, "audit.steps: Input should be greater than or equal to 1, but got 0"),
    ({"base/train/epochs": "many"}, "train.epochs: Input should be a valid integer"),
    ({"base/model": None}, "family 'lasso': model: Input should be a mapping, but got nothing"),
    (
        {"base/model/name": "resnet"},
        "model.name: Input should be fcn, cifar_resnet, cifar_resnet18, cifar_vgg16, "
        "wide_resnet, timm:NAME, torchvision:NAME, open_clip:NAME or clip:NAME, but got 'resnet'",
    ),
    (
        {"families/0/grid": {"model.rank": [2]}, "families/0/zip": {"model.rank": [3]}},
        "belongs to one axis, but got model.rank in two",
    ),
    (
        {"families/0/zip": {"threads": [1, 2], "penalty.l1": [1]}},
        "must be equally many, but got threads 2, penalty.l1 1",
    ),
    ({"families/0/list": [{"threads": 1}, {}]}, "must hold values, but got no value for list"),
    (
        {"base/audit/stages": ["attack", "attack"]},
        "audit.stages must name each stage once, but got ['attack', 'attack']",
    ),
    ({"base/audit/stages": ["mechanism"]}, "mechanism looks at what the attack found, but got ['mechanism']"),
    ({"base/audit/stages": ["profil"]}, "audit.stages.0: Input should be 'bound', 'attack', "),
    (
        {"base/audit/stages": ["attack", "transferred"]},
        "a surrogate and the stage transferred come together, but got no",
    ),
    ({"base/surrogate": {}}, "come together, but got audit.stages without transferred"),
    ({"base/compress": {"kind": "shrink"}}, "compress: its kind should be prune, factorize, quantize or rescale"),
    ({"base/compress": {"kind": "prune"}}, "compress.ratio: Field required"),
    ({"base/compress": {"kind": "factorize"}}, "factorising needs one of rank, energy and residual, but got []"),
    (
        {"base/compress": {"kind": "factorize", "rank": 2, "energy": 0.5}},
        "but got ['rank', 'energy']; give exactly one",
    ),
    ({"base/compress": {"kind": "quantize", "bits": 1}}, "bits: Input should be greater than or equal to 2, but got 1"),
    ({"base/transfer": {"mode": "full"}}, "transfer.data: Field required"),
    (
        {"base/transfer": {"data": {}, "mode": "half"}},
        "transfer.mode: Input should be 'linear' or 'full', but got 'half'",
    ),
    ({"claims": [{"id": "c"}]}, "claims.0.says: Field required"),
    ({"base/device": "gpu"}, "device: Input should be auto, cpu, cuda or cuda:N"),
    ({"families/0/grid": {"device.x": [1]}}, "'device.x' must be a path into the configuration, but got device"),
    (
        {"families/0/grid": {"audit.threats.0.eps": [0.1]}},
        "'audit.threats.0.eps' must be a path into the configuration, but got threats",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), BAD_VALUES, ids=lambda value: str(value)[:40])
def test_value_that_does_not_fit_is_named_with_its_place(edited, changes, expected):
    assert expected in sentence(edited(changes))


def test_missing_key_is_named(edited):
    assert sentence("study: a\nseeds: [0]\n").startswith("s.yaml: families: Field required, but got nothing;")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "s.yaml must be a mapping with study, seeds, base and families, but got nothing; see the README."),
        ("- a\n", "s.yaml must be a mapping with study, seeds, base and families, but got a list; see the README."),
        ("study: a\nstudy: b\n", "must be YAML, but got line 2, column 1: key 'study' is given twice; mend the file"),
        ("base:\n  model: {hidden: [1], hidden: [2]}\n", "line 2, column 24: key 'hidden' is given twice"),
        ("study: [a\n", "must be YAML, but got line 2, column 1: while parsing a flow sequence"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: expected a single document in the stream"),
        ("? [a, b]\n: c\n", "line 1, column 3: while constructing a mapping, found unhashable key"),
        ("title: 2020-13-45\n", "must be YAML, but got month must be in 1..12"),
        ("study: !!int x\n", "must be YAML, but got invalid literal for int()"),
        ("study: !!python/object:os.system {}\n", "could not determine a constructor for the tag"),
        ("[" * 1000, "must be YAML, but got too many brackets in brackets"),
        ("study: \x01\n", "unacceptable character #x0001"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_text_that_is_no_study_is_one_sentence(text, expected):
    assert expected in sentence(text)


def test_file_that_cannot_be_read_is_one_sentence(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, reason in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "Is a directory"), (binary, "decode")):
        with pytest.raises(ConfigError, match="a study file must be a readable text file") as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert reason in str(caught.value)


def test_read_names_the_file(tmp_path, edited):
    path = tmp_path / "mine.yaml"
    path.write_text(edited({"seeds": []}))
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, seeds: ")


def test_merge_keys_and_aliases_are_yaml_too():
    """The same mapping merged into two others, one of which is merged again and overrides a key."""
    text = """
study: merged
seeds: [0]
base:
  train: {epochs: 2}
  audit: &audit {steps: 4, threats: [&first {norm: linf, eps: 0.1}, {<<: *first, norm: l2}]}
families:
  - {name: a, view: neuron, fixed: {audit: {<<: *audit, steps: 5}}, grid: &grid {penalty.l1: [0, 1]}}
  - {name: b, view: neuron, grid: *grid}
"""
    config = parse(text)
    (_, _, first), *_ = config.levels(config.families[0])
    (_, _, second), *_ = config.levels(config.families[1])
    assert (first.audit.steps, second.audit.steps) == (5, 4)
    assert [(threat.norm, threat.eps) for threat in first.audit.threats] == [("linf", 0.1), ("l2", 0.1)]
    assert list(config.families[1].grid) == ["penalty.l1"]


def test_families_that_share_a_mapping_do_not_leak_into_each_other():
    """The grid of one family writes below a mapping that both have fixed."""
    text = """
study: leak
seeds: [0]
families:
  - {name: a, view: neuron, fixed: &fixed {penalty: {l1: 1}}, grid: {penalty.group_lasso: [0.1, 0.2]}}
  - {name: b, view: spectral, fixed: *fixed, grid: {penalty.nuclear_norm: [0.3]}}
"""
    config = parse(text)
    (_, _, cell), *_ = config.levels(config.families[1])
    assert cell.penalty == PenaltyConfig(l1=1, nuclear_norm=0.3)
    assert config.families[0].fixed == {"penalty": {"l1": 1}}


def test_yaml_reads_1e_3_as_text_and_the_study_as_a_number(edited):
    config = parse(edited({"families/0/grid": {"penalty.group_lasso": ["0", "1e-3", "1E-2"]}}))
    strengths = [cell.penalty.group_lasso for _, _, cell in config.levels(config.families[0])]
    assert strengths == [0.0, 0.001, 0.01]


def test_grid_is_a_product_with_the_last_key_running_fastest(edited):
    grid = {"penalty.l1": [0, 0.5], "model.hidden": [[8], [8, 8]], "model.rank": [None, 2, 1]}
    config = parse(edited({"families/0/grid": grid}))
    levels = list(config.levels(config.families[0]))
    assert [level for level, _, _ in levels] == list(range(12))
    seen = [(cell.penalty.l1, list(cell.model.hidden), cell.model.rank) for _, _, cell in levels]
    assert seen == list(product(*grid.values()))
    assert levels[7][1] == "l1 0.5, hidden (8,), rank 2"


def test_labels_are_the_given_ones_or_made_from_the_values(tiny):
    assert [label for _, label, _ in tiny.levels(tiny.families[0])] == [
        "group_lasso 0",
        "group_lasso 0.01",
        "group_lasso 0.1",
    ]
    assert [label for _, label, _ in tiny.levels(tiny.families[1])] == ["full", "2"]


def test_fixed_overrides_base_and_the_grid_overrides_both(edited):
    config = parse(edited({"base/threads": 2, "families/0/fixed": {"threads": 3, "penalty.l1": 0.1}}))
    (_, _, cell), *_ = config.levels(config.families[0])
    assert (cell.threads, cell.penalty.l1) == (3, 0.1)
    config = parse(
        edited({"families/0/fixed": {"penalty.l1": 0.1}, "families/0/grid": {"penalty.l1": [0.2]}, "base/threads": 2})
    )
    (_, _, cell), *_ = config.levels(config.families[0])
    assert (cell.threads, cell.penalty.l1) == (2, 0.2)


def test_all_models_are_judged_under_the_same_threats(edited):
    """Else correlations would mix budgets, and a norm that only some models have would break the summary."""
    one, other = {"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 0.1}
    said = sentence(edited({"families/0/grid": {"audit.threats": [[one], [other]]}}))
    assert said == (
        "s.yaml: all models of a study must be judged under the same norms and budgets, but got linf 0.1 at level 0 of "
        "family 'lasso' and l2 0.1 at level 1 of family 'lasso'; list further budgets in curve, or make it two studies."
    )
    between = sentence(edited({"families/1/fixed": {"audit.threats": [one]}}))
    assert "linf 0.05, l2 0.3 at level 0 of family 'lasso' and linf 0.1 at level 0 of family 'rank'" in between
    curves = [[one | {"curve": [0.2]}], [one | {"curve": [0.3]}]]
    assert parse(edited({"families": [{"name": "a", "view": "neuron", "grid": {"audit.threats": curves}}]}))


def test_configurations_are_frozen(tiny):
    (_, _, cell), *_ = tiny.levels(tiny.families[0])
    for thing, field in ((tiny, "seeds"), (tiny.families[0], "name"), (cell, "threads"), (cell.penalty, "l1")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(thing, field, 1)
    assert hash(cell) == hash(cell.model_copy(deep=True))


def test_penalties_of_strength_zero_are_left_out():
    assert PenaltyConfig().build() is None
    for name, kind in (("l1", L1), ("group_lasso", GroupLasso), ("nuclear_norm", NuclearNorm)):
        assert type(PenaltyConfig(**{name: 0.5}).build()) is kind
    assert isinstance(PenaltyConfig(l1=1, group_lasso=1).build(), Sum)


def test_demo_is_what_the_foundation_asks_for():
    demo = catalogue("demo")
    assert demo.seeds == (0, 1, 2)
    assert [(family.name, family.view) for family in demo.families] == [
        ("group_lasso", "neuron"),
        ("nuclear_norm", "spectral"),
        ("rank", "spectral"),
    ]
    for family in demo.families:
        cells = [cell for _, _, cell in demo.levels(family)]
        for cell in cells:
            assert cell.data.name == "digits"
            assert cell.model.hidden == (128, 128)
            assert not cell.model.bias
            assert cell.constant_frobenius == (family.name == "nuclear_norm")
            assert {threat.norm for threat in cell.audit.threats} == {"linf", "l2"}
            assert cell.audit.samples is None
        first = cells[0]
        assert first.penalty == PenaltyConfig()
        assert first.model.rank is None
    strengths = {
        "group_lasso": lambda cell: cell.penalty.group_lasso,
        "nuclear_norm": lambda cell: cell.penalty.nuclear_norm,
        "rank": lambda cell: -(cell.model.rank or 128),
    }
    for family in demo.families:
        values = [strengths[family.name](cell) for _, _, cell in demo.levels(family)]
        assert values == sorted(set(values)), "from none to strong"


def test_catalogue_names_what_it_holds():
    with pytest.raises(ConfigError, match="must be known by name, but got no/such; use one of: access, adversarial, "):
        catalogue("no/such")


def test_labels_may_be_numbers(edited):
    family = parse(edited({"families/1/labels": ["full", 2]})).families[1]
    assert family.labels == ("full", "2")


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"base/model/name": "resnet"}, "perhaps wide_resnet is meant."),
        ({"base/audit/threats/0/eps": -1}, "use at least 0."),
        ({"base/train/learning_rate": 0}, "use more than 0."),
        ({"base/threads": 5000}, "use at most 1024."),
        ({"base/train/epochs": "many"}, "correct it."),
    ],
    ids=str,
)
def test_remedy_says_what_to_write_instead(edited, changes, remedy):
    assert sentence(edited(changes)).endswith(f"; {remedy}")
