"""Small networks of published families, written as their users write them: with fewer layers and channels, but all
idioms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["FAMILIES", "Family"]

Family = Callable[[], nn.Module]


def conv_bn(
    c_in: int, c_out: int, k: int = 3, s: int = 1, g: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(c_out)]
    if act is not None:
        layers.append(act(inplace=True) if act in (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU) else act())
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Simonyan and Zisserman, 2014; torchvision's head: a pool to 7x7, which enlarges the image here, and dropout."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for item in (8, "M", 16, 16, "M", 16, "M", 24, "M", 24, "M"):
            if item == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(channels, int(item), 3, padding=1))
            layers += [nn.BatchNorm2d(int(item))] if batch_norm else []
            layers.append(nn.ReLU(True))
            channels = int(item)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(nn.Linear(24 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        return torch.as_tensor(self.classifier(torch.flatten(x, 1)))


class ConvolutionalHeadVGG(nn.Module):
    """timm's VGG: the first fully connected layer is a 7x7 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 8, s=2), nn.MaxPool2d(4), conv_bn(8, 12), nn.MaxPool2d(2))
        self.fc1, self.drop, self.fc2 = nn.Conv2d(12, 24, 7), nn.Dropout(), nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if x.shape[-2] < 7 or x.shape[-1] < 7:
            x = F.adaptive_avg_pool2d(x, (max(x.shape[-2], 7), max(x.shape[-1], 7)))
        x = F.relu(self.fc2(self.drop(F.relu(self.fc1(x)))))
        return torch.as_tensor(self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class InvertedResidual(nn.Module):
    """Sandler et al., MobileNetV2, 2018."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = c_in * expand
        self.use_res_connect = stride == 1 and c_in == c_out
        layers = [] if expand == 1 else [conv_bn(c_in, hidden, 1, act=nn.ReLU6)]
        layers += [conv_bn(hidden, hidden, 3, stride, hidden, nn.ReLU6), conv_bn(hidden, c_out, 1, act=None)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(x + self.conv(x) if self.use_res_connect else self.conv(x))


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [InvertedResidual(*row) for row in ((8, 8, 1, 1), (8, 12, 2, 4), (12, 12, 1, 4), (12, 16, 2, 4))]
        self.features = nn.Sequential(conv_bn(3, 8, s=2, act=nn.ReLU6), *blocks, conv_bn(16, 48, 1, act=nn.ReLU6))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(48, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.classifier(self.features(x).mean(3).mean(2)))


class HSigmoid(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(x + 3, inplace=True) / 6


class HSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = HSigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(x * self.sigmoid(x))


class SqueezeExcite(nn.Module):
    """Hu et al., 2017; with view and expand_as, as in most copies."""

    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(inplace=True), nn.Linear(4, channels), gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, _, _ = x.size()
        y = self.fc(self.avg_pool(x).view(b, c)).view(b, c, 1, 1)
        return torch.as_tensor(x * y.expand_as(x))


class MobileNetV3(nn.Module):
    """Howard et al., 2019."""

    def __init__(self, own_functions: bool) -> None:
        super().__init__()
        swish: type[nn.Module] = HSwish if own_functions else nn.Hardswish
        gate: type[nn.Module] = HSigmoid if own_functions else nn.Hardsigmoid
        self.stem = conv_bn(3, 8, s=2, act=swish)
        self.expand = conv_bn(8, 24, 1, act=swish)
        self.depthwise = conv_bn(24, 24, 5, 1, 24, act=None)
        self.se, self.act = SqueezeExcite(24, gate()), swish()
        self.project = conv_bn(24, 8, 1, act=None)
        self.last = conv_bn(8, 32, 1, act=swish)
        self.classifier = nn.Sequential(nn.Linear(32, 32), swish(), nn.Dropout(0.2), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.project(self.act(self.se(self.depthwise(self.expand(x))))) + x
        return torch.as_tensor(self.classifier(F.adaptive_avg_pool2d(self.last(x), 1).flatten(1)))


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = self.conv1(F.relu(self.bn1(torch.cat(features, 1))))
        return torch.as_tensor(self.conv2(F.relu(self.bn2(x))))


class DenseNet(nn.Module):
    """Huang et al., 2016; torchvision's lists of features, or the running concatenation of many CIFAR copies."""

    def __init__(self, running: bool, layers: int = 4) -> None:
        super().__init__()
        self.running = running
        self.conv0 = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        channels = 12
        for block in (1, 2):
            dense = nn.ModuleList(DenseLayer(channels + 6 * i, 6) for i in range(layers))
            self.add_module(f"block{block}", dense)
            channels += 6 * layers
            if block == 1:
                norm = nn.BatchNorm2d(channels)
                self.transition = nn.Sequential(
                    norm, nn.ReLU(), nn.Conv2d(channels, 18, 1, bias=False), nn.AvgPool2d(2)
                )
                channels = 18
        self.norm, self.classifier = nn.BatchNorm2d(channels), nn.Linear(channels, 10)

    def dense(self, block: Any, x: torch.Tensor) -> torch.Tensor:
        if self.running:
            for layer in block:
                x = torch.cat([x, layer([x])], 1)
            return x
        features = [x]
        for layer in block:
            features.append(layer(features))
        return torch.cat(features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.conv0(x), 3, 2, 1)
        x = self.dense(self.block2, self.transition(self.dense(self.block1, x)))
        x = F.relu(self.norm(x), inplace=True)
        return torch.as_tensor(self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)))


def same_pad(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's padding, computed from the size."""
    height, width = x.shape[-2:]
    more = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (height, width)]
    return F.pad(x, (more[1] // 2, more[1] - more[1] // 2, more[0] // 2, more[0] - more[0] // 2))


class MBConv(nn.Module):
    """Tan and Le, EfficientNet, 2019, with drop path."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * c_in
        self.kernel, self.stride, self.residual = kernel, stride, stride == 1 and c_in == c_out
        self.expand, self.bn0 = nn.Conv2d(c_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.se_reduce, self.se_expand = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project, self.bn2 = nn.Conv2d(hidden, c_out, 1, bias=False), nn.BatchNorm2d(c_out)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.bn0(self.expand(inputs))
        x = x * torch.sigmoid(x)
        x = F.silu(self.bn1(self.depthwise(same_pad(x, self.kernel, self.stride))))
        gate = self.se_expand(F.silu(self.se_reduce(x.mean((2, 3), keepdim=True))))
        x = self.bn2(self.project(torch.sigmoid(gate) * x))
        if self.residual:
            if self.training:
                x = x * (torch.rand(len(x), 1, 1, 1) > 0.2)
            x = x + inputs
        return torch.as_tensor(x)


class EfficientNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, s=2, act=nn.SiLU)
        self.blocks = nn.Sequential(MBConv(8, 8, 3, 1), MBConv(8, 12, 5, 2), MBConv(12, 12, 3, 1))
        self.head, self.fc = conv_bn(12, 32, 1, act=nn.SiLU), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(
            self.fc(F.dropout(self.head(self.blocks(self.stem(x))).mean([-2, -1]), 0.2, self.training))
        )


class ShuffleUnit(nn.Module):
    """Ma et al., ShuffleNetV2, 2018."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half = c_out // 2
        self.stride = stride
        self.branch1 = (
            nn.Sequential(conv_bn(c_in, c_in, 3, 2, c_in, None), conv_bn(c_in, half, 1)) if stride == 2 else None
        )
        self.branch2 = nn.Sequential(
            conv_bn(c_in if stride == 2 else half, half, 1),
            conv_bn(half, half, 3, stride, half, None),
            conv_bn(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.branch1 is None:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        n, c, h, w = out.data.size()
        return torch.transpose(out.view(n, 2, c // 2, h, w), 1, 2).contiguous().view(n, -1, h, w)


class Fire(nn.Module):
    """Iandola et al., SqueezeNet, 2016."""

    def __init__(self, c_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeeze, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.squeeze(x))
        return torch.cat([self.activation(self.expand1x1(x)), self.activation(self.expand3x3(x))], 1)


class Inception(nn.Module):
    """Szegedy et al., 2014; the average pool does not count padding, as in Inception v4."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.b1 = conv_bn(c_in, 6, 1)
        self.b2 = nn.Sequential(conv_bn(c_in, 6, 1), conv_bn(6, 8, 3))
        self.b3 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv_bn(c_in, 4, 1))
        self.b4 = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv_bn(c_in, 6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1)


class PreActivation(nn.Module):
    """Zagoruyko and Komodakis, wide residual networks, 2016: batch norm and ReLU come first."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(c_out), nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.equal = c_in == c_out and stride == 1
        self.shortcut = None if self.equal else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.equal:
            out = F.relu(self.bn1(x), inplace=True)
        else:
            x = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(out if self.equal else x)), inplace=True)
        return torch.add(
            x if self.shortcut is None else self.shortcut(x), F.dropout(self.conv2(out), 0.3, self.training)
        )


class ResNeXt(nn.Module):
    """Xie et al., 2016, with the shortcut of ResNet-D: an average pool without padding, then a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(3, 2, 1))
        self.a, self.b, self.c = conv_bn(8, 16, 1), conv_bn(16, 16, 3, 2, 4), conv_bn(16, 24, 1, act=None)
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.downsample = nn.Sequential(pool, nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24))
        self.fc = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        out = self.c(self.b(self.a(x)))
        out += self.downsample(x)
        return torch.as_tensor(self.fc(torch.flatten(F.adaptive_avg_pool2d(F.relu(out, inplace=True), 1), 1)))


class Residual(nn.Module):
    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.fn = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.fn(x) + x)


def conv_mixer() -> nn.Module:
    """Trockman and Kolter, 2022: GELU before batch norm, 'same' padding of 9x9 depthwise convolutions."""
    dim = 16
    blocks = [
        nn.Sequential(
            Residual(nn.Sequential(nn.Conv2d(dim, dim, 9, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim))),
            nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim),
        )
        for _ in range(2)
    ]  # fmt: skip
    stem = [nn.Conv2d(3, dim, 4, 4), nn.GELU(), nn.BatchNorm2d(dim)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(dim, 10))


class RepVGGBlock(nn.Module):
    """Ding et al., 2021, as trained: three branches that are added."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None
        self.rbr_dense, self.rbr_1x1 = (
            conv_bn(c_in, c_out, 3, stride, act=None),
            conv_bn(c_in, c_out, 1, stride, act=None),
        )
        self.se, self.nonlinearity = nn.Identity(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return torch.as_tensor(self.nonlinearity(self.se(self.rbr_dense(x) + self.rbr_1x1(x) + identity)))


class GhostModule(nn.Module):
    """Han et al., 2020."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.c_out, half = c_out, -(-c_out // 2)
        self.primary_conv, self.cheap_operation = conv_bn(c_in, half, 1), conv_bn(half, half, 3, 1, half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1 = self.primary_conv(x)
        return torch.cat([x1, self.cheap_operation(x1)], dim=1)[:, : self.c_out, :, :]


class StandardizedConv(nn.Conv2d):
    """Weights normalized in every forward pass: NF-ResNets (Brock et al., 2021), BiT."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6
        ).reshape_as(self.weight)
        return F.conv2d(input, weight * 0.3, self.bias, self.stride, self.padding, self.dilation, self.groups)


class BatchNormAct(nn.BatchNorm2d):
    """timm's: batch norm and activation in one module, by F.batch_norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return torch.as_tensor(self.act(self.drop(x)))


class NormalizerFree(nn.Module):
    """Idioms of timm: standardized weights, scaled activations, ECA's one-dimensional convolution, BatchNormAct."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = StandardizedConv(3, 12, 3, 2, 1), BatchNormAct(12)
        self.a, self.b = StandardizedConv(12, 12, 3, 1, 1), StandardizedConv(12, 12, 1)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.alpha, self.skip_gain = 0.2, nn.Parameter(torch.tensor(0.7))
        self.fc = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.norm(self.stem(x))
        x = F.silu(self.b(F.silu(self.a(F.silu(shortcut) * 1.7881)) * 1.7881))
        y = self.eca(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        x = (x * y.sigmoid().expand_as(x)).mul_(self.skip_gain) * self.alpha + shortcut
        return torch.as_tensor(
            self.fc(torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1).flatten(1))
        )


class ConvNeXtBlock(nn.Module):
    """Liu et al., 2022, with batch norm: linear layers on channels that come last, and a scale for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(channels, 32), nn.GELU(), nn.Linear(32, channels)
        self.gamma = nn.Parameter(torch.linspace(0.2, 0.5, channels))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.dwconv(input)).permute(0, 2, 3, 1)
        x = self.gamma * self.pwconv2(self.act(self.pwconv1(x)))
        return torch.as_tensor(input + x.permute(0, 3, 1, 2))


class AttentionBlock(nn.Module):
    """Woo et al., CBAM, 2018, and the gate of two branches of ResNeSt (Zhang et al., 2020, radix 2, by sigmoids)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.branches, self.gate = conv_bn(channels, 2 * channels, g=2), nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.mlp(F.avg_pool2d(x, x.size(2))) + self.mlp(F.max_pool2d(x, x.size(2)))
        x = x * torch.sigmoid(pooled)[:, :, None, None]
        statistics = torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], dim=1)
        x = x * torch.sigmoid(self.spatial(statistics))
        n, c, h, w = x.shape
        parts = self.branches(x).view(n, 2, c, h, w)
        gates = torch.sigmoid(self.gate(parts.sum(1).mean((2, 3), keepdim=True))).view(n, 2, c, 1, 1)
        return torch.as_tensor((parts * gates).sum(1))


class ConcatenatedReLU(nn.Module):
    """Shang et al., 2016, and activations by maxima: FReLU (Ma et al., 2020), maxout; zeros as in option A."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.funnel = conv_bn(3, 8, act=None), conv_bn(16, 16, s=2, act=None), conv_bn(16, 16, g=16)
        self.c, self.bn = nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = self.b(torch.cat([F.relu(x), F.relu(-x)], 1))
        x = torch.max(x, self.funnel(x))
        shortcut = x[:, :, ::2, ::2]
        x = torch.cat([shortcut, torch.zeros(shortcut.shape, device=x.device)], 1) + torch.cat([self.c(x)] * 2, 1)
        x = torch.maximum(*self.bn(x).chunk(2, 1))
        return torch.log_softmax(self.fc(x.sum((2, 3)) / 64), dim=-1)


def classifier(features: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def squeeze_net() -> nn.Module:
    features = [
        nn.Conv2d(3, 12, 3, 2),
        nn.ReLU(True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(12, 4, 8),
        Fire(16, 4, 8),
    ]
    head = [nn.Dropout(0.5), nn.Conv2d(16, 10, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1)]
    return nn.Sequential(*features, *head)


def network_in_network() -> nn.Module:
    """Lin et al., 2013."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Dropout(),
        nn.Conv2d(8, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.ReLU(), nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(12, 10, 1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(),
    )  # fmt: skip


FAMILIES: dict[str, tuple[Family, int]] = {
    "VGG": (lambda: VGG(False), 32),
    "VGG with batch norm": (lambda: VGG(True), 64),
    "VGG with a convolutional head": (ConvolutionalHeadVGG, 64),
    "MobileNetV2": (MobileNetV2, 32),
    "MobileNetV3": (lambda: MobileNetV3(False), 32),
    "MobileNetV3 with its own functions": (lambda: MobileNetV3(True), 64),
    "DenseNet": (lambda: DenseNet(False), 32),
    "DenseNet, running": (lambda: DenseNet(True), 32),
    "EfficientNet": (EfficientNet, 64),
    "ShuffleNetV2": (
        lambda: classifier(
            nn.Sequential(conv_bn(3, 8, s=2), ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), ShuffleUnit(16, 16, 1)), 16
        ),
        32,
    ),
    "SqueezeNet": (squeeze_net, 32),
    "GoogLeNet": (lambda: classifier(nn.Sequential(conv_bn(3, 8, s=2), Inception(8), Inception(24)), 24), 32),
    "ResNeXt": (ResNeXt, 32),
    "wide ResNet": (
        lambda: classifier(
            nn.Sequential(
                nn.Conv2d(3, 8, 3, 1, 1), PreActivation(8, 12, 1), PreActivation(12, 12, 1), PreActivation(12, 16, 2),
                nn.BatchNorm2d(16), nn.ReLU(),
            ),
            16,
        ),
        32,
    ),
    "ConvMixer": (conv_mixer, 32),
    "RepVGG": (
        lambda: classifier(nn.Sequential(RepVGGBlock(3, 8, 2), RepVGGBlock(8, 8, 1), RepVGGBlock(8, 12, 2)), 12), 32
    ),
    "network in network": (network_in_network, 32),
    "GhostNet": (
        lambda: classifier(nn.Sequential(conv_bn(3, 8, s=2), GhostModule(8, 15), GhostModule(15, 12)), 12), 32
    ),
    "normalizer-free": (NormalizerFree, 32),
    "ConvNeXt": (lambda: classifier(nn.Sequential(nn.Conv2d(3, 12, 4, 4), ConvNeXtBlock(12)), 12), 32),
    "CBAM and ResNeSt": (lambda: classifier(nn.Sequential(conv_bn(3, 12, s=2), AttentionBlock(12)), 12), 32),
    "CReLU, FReLU and maxout": (ConcatenatedReLU, 32),
}  # fmt: skip
"""From a name to its constructor and the size of its images."""
