import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from twoscale import models
from twoscale.errors import ConfigurationError, UnknownNameError


def test_nets_have_the_lab_s_parameters() -> None:
    shapes = {name: tuple(value.shape) for name, value in models.create("net").named_parameters()}
    assert shapes == {
        "conv1.weight": (6, 3, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 400),
        "fc2.weight": (84, 120),
        "fc3.weight": (10, 84),
    }
    with_bias = {name: tuple(value.shape) for name, value in models.create("net-with-bias").named_parameters()}
    assert with_bias == {**shapes, "fc3.bias": (10,)}


def test_net_computes_what_the_lab_wrote() -> None:
    model = models.create("net-with-bias", seed=3)
    w = model.state_dict()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    a = F.max_pool2d(F.conv2d(x, w["conv1.weight"]).clamp(min=0), 2)
    a = F.max_pool2d(F.conv2d(a, w["conv2.weight"]).clamp(min=0), 2).flatten(1)
    for name in ("fc1", "fc2"):
        a = (a @ w[f"{name}.weight"].T).clamp(min=0)
    torch.testing.assert_close(model(x), a @ w["fc3.weight"].T + w["fc3.bias"])


def test_seed_decides_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = (models.create("net", seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)
    torch.rand(7)
    d = models.create("net", seed=5).state_dict()
    assert all(torch.equal(a[name], d[name]) for name in a)


def test_every_name_can_be_created() -> None:
    assert models.names() == tuple(sorted(models.names()))
    for name in models.names():
        options = {} if name == "autoencoder" else {"classes": 10}
        assert isinstance(models.create(name, **options), torch.nn.Module)


def test_unknown_names_and_options() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'net-with-bais': did you mean 'net-with-bias'\?"):
        models.create("net-with-bais")
    with pytest.raises(ConfigurationError, match=r"cannot create model 'net':.*'depth'"):
        models.create("net", depth=3)


def test_importing_models_and_training_does_not_import_torch() -> None:
    code = (
        "import sys, twoscale.models, twoscale.training; twoscale.models.names(); assert 'torch' not in sys.modules\n"
        "from twoscale.training import train, evaluate; assert callable(train) and callable(evaluate)\n"
        "from twoscale.training import evaluate as again; assert again is evaluate\n"
        "import twoscale.training as t; assert callable(t.train)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
