"""The models of benchmarks.architectures: timm's, and torchvision's that timm lacks, at their own image sizes.

No weights are downloaded. Weights are random with a fixed seed and scaled by fan-in. Batch norms take their statistics
from images, so that activations have the magnitude of a trained network's.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["NAMES", "TORCHVISION", "make_images", "make_model"]

TIMM = """
resnet18 resnet26 resnet50 resnet18d resnext50_32x4d wide_resnet50_2 seresnet50 ecaresnet26t resnetaa50 resnetblur50
resnetrs50 seresnext26t_32x4d legacy_seresnet18 legacy_seresnext26_32x4d resnetv2_50 resnetv2_50d_gn skresnet18
resnest14d res2net50_26w_4s res2net50_14w_8s res2next50 tresnet_m vgg11 vgg11_bn vgg16 densenet121 densenetblur121d
dla34 dla46_c dla60_res2net dpn48b dpn68 hrnet_w18_small hrnet_w18_small_v2 inception_v3 inception_v4
inception_resnet_v2 inception_next_atto legacy_xception xception41 selecsls42b vovnet39a ese_vovnet19b_dw
ese_vovnet19b_slim cspresnet50 cspresnext50 cspdarknet53 cs3darknet_s darknet17 darknet53 cspnext_tiny mobilenetv1_100
mobilenetv2_050 mobilenetv2_100 mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv4_conv_small
mobilenetv4_conv_medium mobilenetv4_conv_aa_large mobilenet_edgetpu_100 mobilenet_edgetpu_v2_xs mnasnet_small
mnasnet_100 semnasnet_100 spnasnet_100 fbnetc_100 fbnetv3_b hardcorenas_a lcnet_050 lcnet_100 lcnetv2_small tinynet_e
tf_mixnet_s mixnet_s efficientnet_b0 efficientnet_es efficientnet_lite0 efficientnet_cc_b0_4e efficientnet_blur_b0
tf_efficientnetv2_b0 tf_efficientnet_b0 efficientnetv2_rw_t efficientnet_b0_gn ghostnet_100 ghostnetv2_100
ghostnetv3_100 repghostnet_100 regnetx_002 regnety_002 regnetx_008 regnety_008 regnetz_b16 regnetv_040 rexnet_100
rexnetr_200 repvgg_a0 repvgg_b0 mobileone_s0 mobileone_s1 gernet_s resnet26t eca_resnet33ts gcresnext26ts nf_resnet26
nf_regnet_b0 nf_seresnet26 eca_nfnet_l0 dm_nfnet_f0 hgnet_tiny hgnetv2_b0 repvit_m0_9 starnet_s050 starnet_s1
fasternet_t0 fasternet_t1 shvit_s1 convmixer_768_32 poolformer_s12 poolformerv2_s12 mambaout_femto convnext_atto
convnext_atto_rms convnextv2_atto edgenext_xx_small rdnet_tiny mixer_s32_224 resmlp_12_224 gmlp_ti16_224 gmixer_12_224
vit_tiny_patch16_224 deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 vit_tiny_r_s16_p8_224
vit_relpos_small_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224 convit_tiny crossvit_9_240 pit_ti_224 levit_128s
levit_conv_128s visformer_tiny tnt_s_patch16_224 xcit_nano_12_p16_224 coat_lite_tiny pvt_v2_b0 twins_svt_small
nest_tiny swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 gcvit_xxtiny davit_tiny
focalnet_tiny_srf hiera_tiny_224 mvitv2_tiny volo_d1_224 vitamin_small_224 coatnet_nano_rw_224 maxvit_pico_rw_256
mobilevit_xxs mobilevitv2_050 tiny_vit_5m_224 efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0
efficientvim_m1 fastvit_t8 nextvit_small swiftformer_xs lowformer_b0 iformer_t cpubone_nano csatv2 sequencer2d_s
botnet26t_256 halonet26t lambda_resnet26t eca_botnext26ts_256 mobilenetv4_hybrid_medium
"""
"""From each of timm's modules of image classifiers one of the smallest, and the best known families several times.
Modules whose smallest model has more than 60 million parameters are left out."""


def conv_relu(channels_in: int, channels: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels, kernel, stride, padding), nn.ReLU(inplace=True)]


def conv_bn(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def alexnet() -> nn.Module:
    """Krizhevsky 2014."""
    return nn.Sequential(
        *conv_relu(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2), *conv_relu(64, 192, 5, padding=2), nn.MaxPool2d(3, 2),
        *conv_relu(192, 384, 3, padding=1), *conv_relu(384, 256, 3, padding=1), *conv_relu(256, 256, 3, padding=1),
        nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten(), nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(),
        nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000),
    )  # fmt: skip


class Branches(nn.Module):
    """Concatenates the results of several branches."""

    def __init__(self, *branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*branch) for branch in branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def fire(channels: int, squeezed: int, expanded: int) -> list[nn.Module]:
    branches = conv_relu(squeezed, expanded, 1), conv_relu(squeezed, expanded, 3, padding=1)
    return [*conv_relu(channels, squeezed, 1), Branches(*branches)]


def squeezenet1_1() -> nn.Module:
    """Iandola et al. 2016."""
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.Sequential(
        *conv_relu(3, 64, 3, 2), pool, *fire(64, 16, 64), *fire(128, 16, 64), pool, *fire(128, 32, 128),
        *fire(256, 32, 128), pool, *fire(256, 48, 192), *fire(384, 48, 192), *fire(384, 64, 256), *fire(512, 64, 256),
        nn.Dropout(), *conv_relu(512, 1000, 1), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1),
    )  # fmt: skip


def googlenet() -> nn.Module:
    """Szegedy et al. 2014, with batch norms, without the auxiliary heads."""

    def unit(channels_in: int, channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        return [*conv_bn(channels_in, channels, kernel, stride), nn.ReLU()]

    def inception(c: int, a: int, b: tuple[int, int], d: tuple[int, int], pooled: int) -> nn.Module:
        pool = [nn.MaxPool2d(3, 1, 1, ceil_mode=True), *unit(c, pooled, 1)]
        branches = [*unit(c, b[0], 1), *unit(*b, 3)], [*unit(c, d[0], 1), *unit(*d, 3)]
        return Branches(unit(c, a, 1), *branches, pool)

    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.Sequential(
        *unit(3, 64, 7, 2), pool, *unit(64, 64, 1), *unit(64, 192, 3), pool,
        inception(192, 64, (96, 128), (16, 32), 32), inception(256, 128, (128, 192), (32, 96), 64), pool,
        inception(480, 192, (96, 208), (16, 48), 64), inception(512, 160, (112, 224), (24, 64), 64),
        inception(512, 128, (128, 256), (24, 64), 64), inception(512, 112, (144, 288), (32, 64), 64),
        inception(528, 256, (160, 320), (32, 128), 128), nn.MaxPool2d(2, 2, ceil_mode=True),
        inception(832, 256, (160, 320), (32, 128), 128), inception(832, 384, (192, 384), (48, 128), 128),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1024, 1000),
    )  # fmt: skip


class ShuffleUnit(nn.Module):
    """Ma et al., ShuffleNetV2, 2018."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, channels // 2
        first = half if stride == 1 else channels_in
        shortcut = [] if stride == 1 else [*conv_bn(first, first, 3, 2, first), *conv_bn(first, half, 1), nn.ReLU()]
        self.shortcut = nn.Sequential(*shortcut)
        depthwise = conv_bn(half, half, 3, stride, half)
        self.branch = nn.Sequential(*conv_bn(first, half, 1), nn.ReLU(), *depthwise, *conv_bn(half, half, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=1) if self.stride == 1 else (x, x)
        joined = torch.cat((self.shortcut(left), self.branch(right)), 1)
        n, c, h, w = joined.size()
        return joined.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*conv_bn(3, 24, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = 24
        for out, count in ((116, 4), (232, 8), (464, 4)):
            for index in range(count):
                layers.append(ShuffleUnit(channels, out, 2 if index == 0 else 1))
                channels = out
        self.features = nn.Sequential(*layers, *conv_bn(channels, 1024, 1), nn.ReLU())
        self.fc = nn.Linear(1024, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.fc(self.features(x).mean([2, 3])))


TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "alexnet": alexnet,
    "squeezenet1_1": squeezenet1_1,
    "googlenet": googlenet,
    "shufflenet_v2_x1_0": ShuffleNetV2,
}
"""Architectures of torchvision that timm does not have, as torchvision writes them."""

NAMES = (*TORCHVISION, *TIMM.split())


class _AnyAttribute(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(types.ModuleType):
    """A module with any class. timm's models need torchvision only for names that they import."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyAttribute(name, (nn.Module,), {})


def import_timm() -> Any:
    """Import timm, which was installed without torchvision."""
    if importlib.util.find_spec("torchvision") is None:
        for name in (
            *("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.datasets"),
            *("torchvision.models", "torchvision.models.feature_extraction"),
            *("torchvision.transforms", "torchvision.transforms.functional"),
        ):
            sys.modules[name] = made = _StandIn(name)
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, made)
    return importlib.import_module("timm")


def make_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.float32]:
    """Return normalized images, float32 (N, C, H, W): smooth random shapes with noise, as photographs are."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    images = np.zeros((count, *shape), np.float32)
    for size, weight in ((7, 1.0), (28, 0.5), (max(height, width), 0.15)):
        coarse = rng.normal(size=(count, channels, size, size)).astype(np.float32)
        rows, columns = np.arange(height) * size // height, np.arange(width) * size // width
        images += weight * coarse[:, :, rows[:, None], columns]
    return images


def _set_weights(model: nn.Module) -> None:
    """Replace weights by random ones of the magnitude that training leads to, also those that begin at 0."""
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1 and not isinstance(module, nn.Embedding):
            nn.init.kaiming_normal_(weight, nonlinearity="relu" if weight.ndim == 4 else "linear")
        elif isinstance(weight, nn.Parameter):  # of a norm
            nn.init.uniform_(weight, 0.5, 1.0)
        if isinstance(bias, nn.Parameter):
            nn.init.normal_(bias, std=0.1)
    for parameter in model.parameters():  # gates of residuals and embeddings of positions that begin near 0
        if parameter.numel() > 1 and float(parameter.abs().max()) < 1e-2:
            nn.init.normal_(parameter, std=0.1)


def make_model(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network with random weights in eval mode, and the shape of its images."""
    torch.manual_seed(0)
    shape = (3, 224, 224)
    if name in TORCHVISION:
        model = TORCHVISION[name]()
    else:
        model = import_timm().create_model(name, pretrained=False)
        shape = tuple(model.default_cfg["input_size"])
    _set_weights(model)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train()
            module.momentum = None  # a plain average
    with torch.no_grad():
        model(torch.from_numpy(make_images(4, shape, seed=1)))
    return model.eval(), shape
