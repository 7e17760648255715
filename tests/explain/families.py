"""Small classifiers of every kind that users have: what the relevance engine is tried on.

Each :class:`Family` builds one network, as small as its architecture allows, from a seed, in float32 and in evaluation
mode, with five classes. Packages are imported when a family is built, so that the catalogue can be read without them.
The home-made networks are in `homemade.py` beside this file.

Two verdicts are expected. ``exact``: the relevance of the input plus that of all constants is the logit. ``flagged``:
an operation in it has no rule that anyone would expect, so the engine may refuse it with a sentence of its own or be
off; what it may not do is to be off and say that it is right.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from homemade import home_made
from torch import nn

__all__ = ["CLASSES", "FAMILIES", "Family", "images_for", "logits_of", "trained_like"]

CLASSES = 5
PACKAGES = {"own": "torch", **{name: name for name in ("torchvision", "timm", "transformers", "peft")}}


@dataclass(frozen=True)
class Family:
    """One kind of classifier.

    Attributes
    ----------
    name : str
    source : str
        Key of `PACKAGES`: where the classes come from; ``own`` for home-made ones.
    make : callable
        Returns the network; weights come from torch's global generator.
    size : tuple of int
        (C, H, W) of its images.
    verdict : str
        ``exact`` or ``flagged``.
    heavy : bool
        Whether it takes seconds: its tests are among those marked ``long``.
    listed : bool
        Whether issue 14 names it.
    full : callable or None
        Returns the network as users have it, 1000 classes, for the benchmark.
    full_size : int
        Side of its images in pixels.
    end : str
        ``logits``, or what the network ends in after its logits: they are then given by its method ``before``.
    """

    name: str
    source: str
    make: Callable[[], nn.Module]
    size: tuple[int, int, int] = (3, 32, 32)
    verdict: str = "exact"
    heavy: bool = False
    listed: bool = True
    full: Callable[[], nn.Module] | None = None
    full_size: int = 224
    end: str = "logits"

    def build(self, seed: int, full: bool = False) -> nn.Module:
        """Return the network in evaluation mode; the global generator stays as it was."""
        make = self.full if full and self.full is not None else self.make
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            return make().eval()

    def logits(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return the network's logits by a plain call, shape (n, K)."""
        with torch.no_grad():
            output = logits_of(model(images.clone()) if self.end == "logits" else model.before(images.clone()))
        return torch.cat([-output, output], dim=1) * 0.5 if output.shape[1] == 1 else output


def logits_of(output: Any) -> torch.Tensor:
    """Return the logits in what a classifier returned: a tensor, tuple, mapping, or object with `.logits`."""
    if isinstance(output, torch.Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        return output["logits"] if "logits" in output else next(iter(output.values()))
    return output[0]


def images_for(
    family: Family, number: int, seed: int = 0, dtype: torch.dtype = torch.float32, full: bool = False
) -> torch.Tensor:
    """Return smooth images of both signs with noise, shape (number, C, H, W), about unit size."""
    channels, height, width = family.size
    if full:
        height = width = family.full_size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(number, channels, 4, 4, generator=generator, dtype=torch.float64)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    noise = torch.randn(number, channels, height, width, generator=generator, dtype=torch.float64)
    return (smooth + 0.3 * noise + 0.1).to(dtype)


def trained_like(model: nn.Module, images: torch.Tensor, seed: int = 0) -> nn.Module:
    """Give the network weights and statistics of a trained one's kind, in place, and return it.

    What a new network leaves at zero or one (biases, the affine part of normalisations, class tokens, position
    embeddings, layer scale, zero-initialised branches, prototypes of squeeze-excitation) is moved away from there, tiny
    matrices get the size that keeps a signal alive, output channels differ in size, and batch normalisation has
    statistics of `images`.

    Parameters
    ----------
    model : torch.nn.Module
    images : Tensor, shape (n, C, H, W)
        At least two; in the network's dtype.
    seed : int
    """
    generator = torch.Generator().manual_seed(1000 + seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64).mul(high - low).add(low).to(like)

    def normal(like: torch.Tensor, size: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).mul(size).to(like)

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            level = float(parameter.mean())
            if parameter.ndim >= 2 and _is_matrix(parameter):
                fan_in = parameter[0].numel()
                wanted = fan_in**-0.5
                if spread == 0 and abs(level) < 1e-3:
                    parameter.copy_(normal(parameter, wanted))
                elif spread < 0.5 * wanted:
                    parameter.mul_(wanted / spread) if spread else None
                rows = uniform(parameter[:, :1].flatten(1)[:, :1], 0.6, 1.6)
                parameter.mul_(rows.reshape(-1, *[1] * (parameter.ndim - 1)))
            elif spread < 1e-6 * max(abs(level), 1e-12) + 1e-12:  # all the same: a scale, or zeros
                if abs(level) > 0.5:
                    parameter.copy_(level * uniform(parameter, 0.5, 1.5))
                elif level:
                    parameter.copy_(uniform(parameter, 0.2, 0.8))
                else:
                    parameter.copy_(normal(parameter, 0.15))
            else:  # tokens, positions, relative tables, biases that are random already
                parameter.add_(normal(parameter, max(0.1, 0.5 * spread)))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        before = [m.momentum for m in norms]
        for m in norms:
            m.momentum = None
            m.reset_running_stats()
            m.train()
        if norms:
            for _ in range(2):
                model(images.clone())
        for m, momentum in zip(norms, before, strict=True):
            m.momentum = momentum
            m.running_var.clamp_(min=0.25 * float(m.running_var.mean()))  # few images leave channels all but constant
    return model.eval()


def _is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a parameter looks like a linear map's weight, not like tokens (1, L, D) or a scale (C, 1, 1)."""
    return parameter.shape[0] > 1 and parameter[0].numel() > 1 and not (parameter.ndim == 3 and parameter.shape[0] <= 4)


# torchvision ---------------------------------------------------------------------------------------------------------


def _zoo() -> Any:
    return importlib.import_module("torchvision.models")


def _full_zoo(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(_zoo(), name)(weights=None, **options)


def _alexnet() -> nn.Module:
    with torch.device("meta"):  # its 58 million weights are never made
        model = _zoo().AlexNet(num_classes=CLASSES)
    model.features.to_empty(device="cpu")
    for m in model.features:
        if isinstance(m, nn.Conv2d):
            m.reset_parameters()
    model.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(256 * 36, 24), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(24, 24),
        nn.ReLU(inplace=True), nn.Linear(24, CLASSES),
    )  # fmt: skip
    return model


def _vgg(plan: list[Any], batch_norm: bool) -> nn.Module:
    vgg = importlib.import_module("torchvision.models.vgg")
    with torch.device("meta"):
        model = vgg.VGG(nn.Identity(), num_classes=CLASSES, init_weights=False)
    model.features = vgg.make_layers(plan, batch_norm=batch_norm)
    width = [n for n in plan if n != "M"][-1]
    model.avgpool = nn.AdaptiveAvgPool2d((7, 7))
    model.classifier = nn.Sequential(
        nn.Linear(width * 49, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 24), nn.ReLU(True), nn.Dropout(),
        nn.Linear(24, CLASSES),
    )  # fmt: skip
    return model


def _tv_resnet(block: str, **options: Any) -> nn.Module:
    resnet = importlib.import_module("torchvision.models.resnet")
    return resnet.ResNet(getattr(resnet, block), [1, 1, 1, 1], num_classes=CLASSES, **options)


def _tv_mobilenet_v3() -> nn.Module:
    m = importlib.import_module("torchvision.models.mobilenetv3")
    setting = [
        m.InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 0.5),
        m.InvertedResidualConfig(16, 3, 32, 24, False, "RE", 2, 1, 0.5),
        m.InvertedResidualConfig(24, 5, 48, 24, True, "HS", 1, 1, 0.5),
        m.InvertedResidualConfig(24, 5, 48, 24, True, "HS", 1, 1, 0.5),
    ]
    return m.MobileNetV3(setting, last_channel=32, num_classes=CLASSES)


def _tv_efficientnet() -> nn.Module:
    m = importlib.import_module("torchvision.models.efficientnet")
    setting = [
        m.MBConvConfig(1, 3, 1, 8, 8, 1),
        m.MBConvConfig(4, 3, 2, 8, 12, 2),
        m.MBConvConfig(4, 5, 2, 12, 16, 2),
    ]
    return m.EfficientNet(setting, dropout=0.2, last_channel=32, num_classes=CLASSES)


def _tv_regnet() -> nn.Module:
    m = importlib.import_module("torchvision.models.regnet")
    params = m.BlockParams.from_init_params(depth=4, w_0=8, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return m.RegNet(params, num_classes=CLASSES, stem_width=8)


def _tv_convnext() -> nn.Module:
    m = importlib.import_module("torchvision.models.convnext")
    return m.ConvNeXt([m.CNBlockConfig(8, 16, 1), m.CNBlockConfig(16, None, 2)], num_classes=CLASSES)


def _tv_swin(version: int) -> nn.Module:
    m = importlib.import_module("torchvision.models.swin_transformer")
    newer = {"block": m.SwinTransformerBlockV2, "downsample_layer": m.PatchMergingV2} if version == 2 else {}
    return m.SwinTransformer([2, 2], 8, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, **newer)


def _tv_maxvit() -> nn.Module:
    return _zoo().MaxVit(
        input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[8, 16], block_layers=[1, 1], head_dim=4,
        stochastic_depth_prob=0.1, num_classes=CLASSES,
    )  # fmt: skip


def _tv_shufflenet() -> nn.Module:
    return _zoo().ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 48], num_classes=CLASSES)


def _tv_mobilenet_v2() -> nn.Module:
    setting = [[1, 8, 1, 1], [6, 12, 2, 2], [6, 16, 2, 2]]
    return _zoo().MobileNetV2(num_classes=CLASSES, width_mult=0.5, inverted_residual_setting=setting)


def _tv_vit() -> nn.Module:
    return _zoo().VisionTransformer(32, 8, 2, 3, 24, 48, num_classes=CLASSES)


def _torchvision() -> list[Family]:
    small: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], str, dict[str, Any]]] = {
        "alexnet": (_alexnet, (3, 64, 64), "alexnet", {}),
        "vgg11": (lambda: _vgg([8, "M", 12, "M", 16, 16, "M", 16, 16, "M"], False), (3, 32, 32), "vgg11", {}),
        "vgg16_bn": (lambda: _vgg([8, 8, "M", 12, 12, "M", 16, 16, "M"], True), (3, 32, 32), "vgg16_bn", {}),
        "resnet18": (lambda: _tv_resnet("BasicBlock"), (3, 32, 32), "resnet18", {}),
        "resnet50": (lambda: _tv_resnet("Bottleneck", width_per_group=8), (3, 32, 32), "resnet50", {}),
        "densenet121": (
            lambda: _zoo().DenseNet(6, (2, 2, 2, 2), 8, bn_size=2, num_classes=CLASSES), (3, 32, 32), "densenet121", {},
        ),
        "googlenet": (
            lambda: _zoo().GoogLeNet(CLASSES, aux_logits=False, init_weights=False), (3, 32, 32), "googlenet",
            {"init_weights": False},
        ),
        "squeezenet1_1": (lambda: _zoo().SqueezeNet("1_1", CLASSES), (3, 32, 32), "squeezenet1_1", {}),
        "mobilenet_v2": (_tv_mobilenet_v2, (3, 32, 32), "mobilenet_v2", {}),
        "mobilenet_v3": (_tv_mobilenet_v3, (3, 32, 32), "mobilenet_v3_small", {}),
        "shufflenet_v2": (_tv_shufflenet, (3, 32, 32), "shufflenet_v2_x1_0", {}),
        "efficientnet_b0": (_tv_efficientnet, (3, 32, 32), "efficientnet_b0", {}),
        "regnet_y": (_tv_regnet, (3, 32, 32), "regnet_y_400mf", {}),
        "convnext_tiny": (_tv_convnext, (3, 32, 32), "convnext_tiny", {}),
        "vit_b_16": (_tv_vit, (3, 32, 32), "vit_b_16", {}),
        "swin_t": (lambda: _tv_swin(1), (3, 32, 32), "swin_t", {}),
        "maxvit_t": (_tv_maxvit, (3, 32, 32), "maxvit_t", {}),
    }  # fmt: skip
    families = [
        Family(
            f"torchvision/{name}", "torchvision", make, size, full=_full_zoo(full, **options), heavy=name == "googlenet"
        )
        for name, (make, size, full, options) in small.items()
    ]
    return [
        *families,
        Family(
            "torchvision/inception_v3", "torchvision",
            lambda: _zoo().Inception3(CLASSES, aux_logits=False, transform_input=True, init_weights=False), (3, 75, 75),
            heavy=True, full=_full_zoo("inception_v3", init_weights=False), full_size=299,
        ),
        Family("torchvision/swin_v2_t", "torchvision", lambda: _tv_swin(2), listed=False, full=_full_zoo("swin_v2_t")),
        Family(
            "torchvision/mnasnet", "torchvision", lambda: _zoo().MNASNet(0.35, CLASSES), listed=False, heavy=True,
            full=_full_zoo("mnasnet0_5"),
        ),
        Family(
            "torchvision/resnext50", "torchvision", lambda: _tv_resnet("Bottleneck", groups=4, width_per_group=4),
            listed=False, heavy=True, full=_full_zoo("resnext50_32x4d"),
        ),
    ]  # fmt: skip


# timm ----------------------------------------------------------------------------------------------------------------


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return importlib.import_module("timm").create_model(name, pretrained=False, num_classes=CLASSES, **options)

    return make


def _full_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name, pretrained=False, **options)


def _timm_part(module: str, function: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    """Return a maker from a class or function of one of timm's modules, for what `create_model` cannot make small."""

    def make() -> nn.Module:
        part = getattr(importlib.import_module(f"timm.models.{module}"), function)
        return part(*arguments, num_classes=CLASSES, **options)

    return make


def _timm_config(module: str, kind: str, config: str, head: int = 8, **changes: Any) -> Callable[[], nn.Module]:
    """Return a maker from one of timm's dataclasses of settings with some of them changed."""

    def make() -> nn.Module:
        part = importlib.import_module(f"timm.models.{module}")
        settings = part.model_cfgs[config]
        if hasattr(settings, "transformer_cfg"):
            changes["transformer_cfg"] = dataclasses.replace(settings.transformer_cfg, dim_head=head)
        settings = dataclasses.replace(settings, **changes)
        extra = {"img_size": 64} if module == "maxxvit" else {}
        return getattr(part, kind)(settings, num_classes=CLASSES, **extra)

    return make


def _timm_hrnet() -> nn.Module:
    hrnet = importlib.import_module("timm.models.hrnet")
    settings = copy.deepcopy(hrnet.cfg_cls["hrnet_w18_small"])
    settings["stem_width"] = 8
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        branches = settings[stage]["num_branches"]
        settings[stage]["num_blocks"] = (1,) * branches
        settings[stage]["num_channels"] = (4, 6, 8, 12)[:branches]
    return hrnet.HighResolutionNet(settings, num_classes=CLASSES)


def _timm_ghostnet() -> nn.Module:
    settings = [[[3, 16, 16, 0, 1]], [[3, 48, 24, 0, 2]], [[5, 72, 24, 0.25, 2], [3, 72, 24, 0.25, 1]]]
    return importlib.import_module("timm.models.ghostnet").GhostNet(settings, CLASSES, width=0.5)


def _timm_mobilevit(version: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        part = importlib.import_module("timm.models.mobilevit")
        byob = importlib.import_module("timm.models.byobnet")
        residual = part._inverted_residual_block
        if version == 1:
            block = part._mobilevit_block(d=1, c=16, s=2, transformer_dim=24, transformer_depth=1, patch_size=2, br=2.0)
        else:
            block = part._mobilevitv2_block(d=1, c=16, s=2, transformer_depth=1, patch_size=2, br=2.0)
        name = "mobilevit_xxs" if version == 1 else "mobilevitv2_050"
        blocks = (residual(d=1, c=8, s=1, br=2.0), residual(d=2, c=12, s=2, br=2.0), block)
        settings = dataclasses.replace(part.model_cfgs[name], blocks=blocks, stem_chs=8)
        if version == 1:
            settings = dataclasses.replace(settings, num_features=24)
        return byob.ByobNet(settings, num_classes=CLASSES)

    return make


VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}
VIT14 = {"img_size": 28, "patch_size": 7, "depth": 2, "embed_dim": 24, "num_heads": 3}
SWIN = {"img_size": 32, "patch_size": 2, "depths": (2, 2), "embed_dim": 8, "num_heads": (2, 4), "window_size": 4}
MIXER = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 24}


def _timm_families() -> list[Family]:
    def one(
        name: str, make: Callable[[], nn.Module], full: str, side: int = 32, full_side: int = 224, **rest: Any
    ) -> Family:
        options = rest.pop("options", {})
        full_make = _full_timm(full, **options)
        return Family(f"timm/{name}", "timm", make, (3, side, side), full=full_make, full_size=full_side, **rest)

    short = {"layers": (1, 1, 1, 1)}
    maxx = {"embed_dim": (16, 16, 24, 24), "depths": (1, 1, 1, 1)}
    metaformer = {"depths": (1, 1), "dims": (8, 12), "res_scale_init_values": None, "use_mlp_head": False}
    return [
        one("resnet18", _timm("resnet18", channels=(8, 16, 16, 24), stem_width=8, **short), "resnet18"),
        one("resnet50d", _timm("resnet50d", channels=(4, 8, 8, 12), stem_width=8, **short), "resnet50d"),
        one("legacy_seresnet18", _timm("legacy_seresnet18", **short), "legacy_seresnet18"),
        one("resnext50", _timm("resnext50_32x4d", channels=(16,) * 4, cardinality=4, **short), "resnext50_32x4d"),
        one(
            "efficientnet_lite0",
            _timm_part("efficientnet", "_gen_efficientnet_lite", "efficientnet_lite0", 0.25, 0.4), "efficientnet_lite0",
        ),
        one(
            "mobilenetv4",
            _timm_part("mobilenetv3", "_gen_mobilenet_v4", "mobilenetv4_conv_small", 0.25), "mobilenetv4_conv_small",
        ),
        one("convnextv2_atto", _timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 12, 16)), "convnextv2_atto"),
        one("vit_tiny", _timm("vit_tiny_patch16_224", **VIT), "vit_tiny_patch16_224"),
        one("deit3", _timm("deit3_small_patch16_224", **VIT), "deit3_small_patch16_224"),
        one(
            "dinov2_vits14", _timm("vit_small_patch14_dinov2", **VIT14), "vit_small_patch14_dinov2", 28,
            options={"img_size": 224},
        ),
        one("eva02_tiny", _timm("eva02_tiny_patch14_224", **VIT14), "eva02_tiny_patch14_224", 28),
        one("beit", _timm("beit_base_patch16_224", **VIT), "beit_base_patch16_224"),
        one("cait", _timm("cait_xxs24_224", **VIT), "cait_xxs24_224"),
        one("swin", _timm("swin_tiny_patch4_window7_224", **SWIN), "swin_tiny_patch4_window7_224"),
        one("mixer", _timm_part("mlp_mixer", "MlpMixer", **MIXER), "mixer_s16_224"),
        one("poolformer", _timm_poolformer, "poolformer_s12"),
        one(
            "nf_resnet",
            _timm_config(
                "nfnet", "NormFreeNet", "nf_resnet50", depths=(1, 1, 1, 1), channels=(16, 16, 24, 24), stem_chs=8
            ), "nf_resnet50",
        ),
        one("densenet", _timm("densenet121", growth_rate=6, block_config=(2, 2, 2, 2)), "densenet121"),
        one("hrnet", _timm_hrnet, "hrnet_w18_small", heavy=True),
        one("ghostnet", _timm_ghostnet, "ghostnet_100"),
        one("res2net", _timm("res2net50_26w_4s", channels=(8, 8, 8, 8), **short), "res2net50_26w_4s"),
        one(
            "coatnet", _timm_config("maxxvit", "MaxxVit", "coatnet_0_rw", stem_width=(8, 16), **maxx),
            "coatnet_0_rw_224", 64,
        ),
        one(
            "maxvit", _timm_config("maxxvit", "MaxxVit", "maxvit_tiny_tf", stem_width=8, head_hidden_size=16, **maxx),
            "maxvit_tiny_tf_224", 64, heavy=True,
        ),
        one("mobilevit", _timm_mobilevit(1), "mobilevit_s", full_side=256),
        one(
            "levit",
            _timm("levit_128s", img_size=64, embed_dim=(16, 24, 32), num_heads=(2, 2, 2), depth=(1, 1, 1), key_dim=8),
            "levit_128s", 64,
        ),
        one(
            "pvt_v2",
            _timm("pvt_v2_b0", depths=(1, 1, 1, 1), embed_dims=(8, 8, 12, 16), num_heads=(1, 2, 2, 2)), "pvt_v2_b0",
        ),
        # of the same packages, not named in the issue
        one("mobilevitv2", _timm_mobilevit(2), "mobilevitv2_100", full_side=256, listed=False),
        one("swinv2", _timm("swinv2_tiny_window8_256", **SWIN), "swinv2_tiny_window8_256", full_side=256, listed=False),
        one("dinov2_reg4", _timm("vit_small_patch14_reg4_dinov2", **VIT14), "vit_small_patch14_reg4_dinov2", 28,
            options={"img_size": 224}, listed=False),
        one("beitv2", _timm("beitv2_base_patch16_224", **VIT), "beitv2_base_patch16_224", listed=False),
        one("siglip", _timm("vit_base_patch16_siglip_224", **VIT), "vit_base_patch16_siglip_224", listed=False),
        one("gmlp", _timm_mixer("gmlp"), "gmlp_s16_224", listed=False),
        one("resmlp", _timm_mixer("resmlp"), "resmlp_12_224", listed=False),
        one("caformer", _timm_part("metaformer", "MetaFormer", **{**metaformer, "depths": (1, 1), "dims": (8, 32)}),
            "caformer_s18", listed=False),
        one(
            "coatnet_tf", _timm_config("maxxvit", "MaxxVit", "coatnet_0", stem_width=8, head_hidden_size=16, **maxx),
            "coatnet_0_224", 64, listed=False, heavy=True,
        ),
        one(
            "maxvit_rmlp", _timm_config("maxxvit", "MaxxVit", "maxvit_rmlp_pico_rw", stem_width=(8, 16), **maxx),
            "maxvit_rmlp_pico_rw_256", 64, 256, listed=False, heavy=True,
        ),
    ]  # fmt: skip


def _timm_poolformer() -> nn.Module:
    part = importlib.import_module("timm.models.metaformer")
    return part.MetaFormer(
        depths=(1, 1), dims=(8, 12), downsample_norm=None, mlp_act=nn.GELU, mlp_bias=True, norm_layers=part.GroupNorm1,
        layer_scale_init_values=1e-5, res_scale_init_values=None, use_mlp_head=False, num_classes=CLASSES,
    )  # fmt: skip


def _timm_mixer(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        part = importlib.import_module("timm.models.mlp_mixer")
        options = {
            "gmlp": {"mlp_ratio": 4, "block_layer": part.SpatialGatingBlock, "mlp_layer": part.GatedMlp},
            "resmlp": {"mlp_ratio": 4, "block_layer": part.ResBlock, "norm_layer": part.Affine},
        }[kind]
        return part.MlpMixer(num_classes=CLASSES, **MIXER, **options)

    return make


# Hugging Face, from configurations -----------------------------------------------------------------------------------


def _hf(config: str, model: str | None = None, **options: Any) -> Callable[[], nn.Module]:
    """Return a maker of a `...ForImageClassification` from its configuration."""

    def make() -> nn.Module:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        package = importlib.import_module("transformers")
        kind = model or config.replace("Config", "ForImageClassification")
        return getattr(package, kind)(getattr(package, config)(**options))

    return make


def _hf_families() -> list[Family]:
    vit = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    patches = {"image_size": 32, "patch_size": 8}
    labels = {"num_labels": CLASSES}
    convs = {"hidden_sizes": [8, 16], "depths": [1, 1], **labels}
    swin = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    rows: list[tuple[str, str, str | None, dict[str, Any], dict[str, Any], bool]] = [
        ("vit", "ViTConfig", None, vit | patches, {}, True),
        ("deit", "DeiTConfig", None, vit | patches, {}, True),
        ("deit_teacher", "DeiTConfig", "DeiTForImageClassificationWithTeacher", vit | patches, {}, True),
        ("swin", "SwinConfig", None, swin, {}, True),
        ("convnext", "ConvNextConfig", None, {**convs, "num_stages": 2}, {}, True),
        ("resnet", "ResNetConfig", None, {**convs, "embedding_size": 8, "layer_type": "basic"}, {}, True),
        ("resnet_bottleneck", "ResNetConfig", None, {
            **convs, "embedding_size": 8, "layer_type": "bottleneck",
        }, {}, True),
        ("beit", "BeitConfig", None, {**vit, **patches, "use_relative_position_bias": True}, {}, True),
        ("dinov2", "Dinov2Config", None, vit | patches, {"image_size": 224}, True),
        ("regnet", "RegNetConfig", None, {**convs, "embedding_size": 8, "groups_width": 4}, {}, False),
        ("convnextv2", "ConvNextV2Config", None, {**convs, "num_stages": 2}, {}, False),
        ("dinov2_registers", "Dinov2WithRegistersConfig", None, vit | patches, {"image_size": 224}, False),
        ("swinv2", "Swinv2Config", None, swin, {}, False),
        ("vit_msn", "ViTMSNConfig", None, vit | patches, {}, False),
        ("data2vec", "Data2VecVisionConfig", None, {**vit, **patches, "use_relative_position_bias": True}, {}, False),
        ("mobilevit", "MobileViTConfig", None, {
            "hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 12, 16, 16, 16, 20, 24], "num_attention_heads": 2,
            "image_size": 32,
        }, {}, False),
        ("pvt_v2", "PvtV2Config", None, {
            "hidden_sizes": [8, 8, 12, 16], "depths": [1] * 4, "num_attention_heads": [1, 2, 2, 2],
            "mlp_ratios": [2] * 4, "image_size": 32,
        }, {}, False),
        ("segformer", "SegformerConfig", None, {
            "hidden_sizes": [8, 8, 12, 16], "depths": [1] * 4, "num_attention_heads": [1, 2, 2, 2],
            "mlp_ratios": [2] * 4,
        }, {}, False),
        ("focalnet", "FocalNetConfig", None, {
            "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2],
            "focal_windows": [3, 3], "hidden_sizes": [8, 16],
        }, {}, False),
        ("poolformer", "PoolFormerConfig", None, {"hidden_sizes": [8, 8, 12, 16], "depths": [1] * 4}, {}, False),
        ("cvt", "CvtConfig", None, {"embed_dim": [8, 8, 12], "depth": [1, 2, 3], "num_heads": [1, 2, 2]}, {}, False),
        ("levit", "LevitConfig", None, {
            "image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        }, {"size": 64}, False),
        ("siglip", "SiglipConfig", None, {"vision_config": vit | patches, "text_config": vit}, {}, False),
        ("clip", "CLIPConfig", None, {"vision_config": vit | patches, "text_config": vit}, {}, False),
        ("mobilenet_v2", "MobileNetV2Config", None, {"depth_multiplier": 0.25}, {}, False),
        ("mobilenet_v1", "MobileNetV1Config", None, {"depth_multiplier": 0.25}, {}, False),
        ("efficientnet", "EfficientNetConfig", None, {"width_coefficient": 0.25, "hidden_dim": 320}, {}, False),
        ("bit", "BitConfig", None, {**convs, "embedding_size": 8, "num_groups": 4}, {}, False),
        ("hiera", "HieraConfig", None, {
            "image_size": [32, 32], "patch_stride": [4, 4], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
            "num_query_pool": 1, "masked_unit_size": [4, 4], "query_stride": [2, 2], "hidden_size": 16,
        }, {}, False),
        ("ijepa", "IJepaConfig", None, vit | patches, {}, False),
    ]  # fmt: skip
    families = []
    for name, config, model, options, full, listed in rows:
        side = full.pop("size", 32)
        families.append(
            Family(
                f"transformers/{name}",
                "transformers",
                _hf(config, model, **{**options, **labels}),
                (3, side, side),
                listed=listed,
                heavy=name in ("efficientnet", "mobilenet_v1", "mobilenet_v2", "mobilevit", "cvt"),
                full=_hf(config, model, **full) if listed else None,
            )
        )
    return families


# All -----------------------------------------------------------------------------------------------------------------


def _all() -> dict[str, Family]:
    found: dict[str, Family] = {}
    for family in [*_torchvision(), *_timm_families(), *_hf_families(), *home_made(Family, CLASSES)]:
        if family.name in found:
            raise ValueError(f"two families are named {family.name}")
        found[family.name] = family
    return found


FAMILIES: dict[str, Family] = _all()
