"""Small classifiers as users write them by hand: functional calls, in-place steps, own attention, own everything.

`families.py` lists them with those of the packages.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

WIDTH = 8


class Block(nn.Module):
    """A forward function with its modules and parameters: what is written in a lambda elsewhere."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(a: int = WIDTH, b: int = WIDTH, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=options.pop("padding", k // 2), **options)


def values(*shape: int, size: float = 0.5) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * size)


def on_maps(function: Callable[[Any, Tensor], Any], width: int = WIDTH, classes: int = 5, **parts: Any) -> nn.Module:
    """Stem, the block on (n, 8, 8, 8) maps of both signs, head."""
    block = Block(function, **parts)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, stride=2, padding=1), block, conv(width, width), nn.ReLU(), *head)


def on_rows(function: Callable[[Any, Tensor], Any], width: int = 12, classes: int = 5, **parts: Any) -> nn.Module:
    """Run the block on (n, 17, 12) tokens: a class token, patches, positions; the head sees the first and the mean."""
    return Tokens(Block(function, **parts), width, classes)


class Tokens(nn.Module):
    def __init__(self, block: nn.Module, width: int = 12, classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token, self.positions = values(1, 1, 12), values(1, 17, 12)
        self.block = block
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.patches(x).flatten(2).transpose(1, 2)
        rows = torch.cat([self.token.expand(len(rows), -1, -1), rows], dim=1) + self.positions
        rows = self.norm(self.block(rows))
        return self.head(rows[:, 0] + rows[:, 1:].mean(dim=1))


class Even(Tokens):
    """Eighteen rows: a number that three images, or two, divide, so that rows and images are not told apart by it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        self.positions = values(1, 18, 12)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.patches(x).flatten(2).transpose(1, 2)
        rows = torch.cat([self.token.expand(len(rows), 2, -1), rows], dim=1) + self.positions
        return self.head(self.norm(self.block(rows)).mean(dim=1))


def heads(x: Tensor, n: int = 3) -> Tensor:
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def qkv(s: Any, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(heads(part) for part in s.q(x).chunk(3, dim=-1))


# Residual connections, in-place steps --------------------------------------------------------------------------------


def _plus(s: Any, x: Tensor) -> Tensor:
    x = F.relu(x)
    return F.relu(x + s.b(F.relu(s.a(x))))


def _plus_in_place(s: Any, x: Tensor) -> Tensor:
    x = F.relu(x, inplace=True)
    y = s.b(F.relu_(s.a(x)))
    y += x
    return y.relu_()


def _plus_by_method(s: Any, x: Tensor) -> Tensor:
    y = torch.add(s.b(x.relu()), x, alpha=0.5)
    return y.add_(s.a(x), alpha=-0.3).sub(0.1 * x).relu()


def _slices(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    y[:, :2] += x[:, :2]
    y[:, 2:4] = F.relu(y[:, 2:4])
    y[:, 4] *= 0.5
    y[:, 5:, 1:, :] -= 0.2 * x[:, 5:, :-1, :]
    return y


def _new_buffer(s: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :4] = s.a(x)[:, :4]
    y[:, 4:] = x[:, 4:]
    out = x.new_zeros(x.shape)
    out.copy_(y)
    return out.index_add_(1, torch.tensor([0, 2]), x[:, :2]) if x.dtype != torch.float16 else out


def _selected(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    z = torch.where(y > 0, y, 0.1 * y)
    z = z.masked_fill(z < -0.2, 0.0).clamp(-1.0, 2.0)
    z = torch.maximum(z, 0.3 * x) + torch.minimum(y, x)
    return torch.where(x > 0, z, torch.zeros_like(z))


# Attention -----------------------------------------------------------------------------------------------------------


def _matmul_masked(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5)
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(3)
    scores = scores.masked_fill(mask, float("-inf"))
    return x + s.o(joined(scores.softmax(dim=-1) @ v))


def _additive_mask(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    mask = torch.zeros(q.shape[2], q.shape[2], device=x.device, dtype=x.dtype)
    mask[:, -3:] = torch.finfo(x.dtype).min
    weights = F.softmax(torch.matmul(q, k.transpose(2, 3)) / math.sqrt(q.shape[-1]) + mask, dim=-1, dtype=torch.float32)
    return x + s.o(joined(torch.matmul(F.dropout(weights.to(x.dtype), 0.1, s.training), v)))


def _einsum(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(0.5).softmax(-1)
    return x + s.o(joined(torch.einsum("bhij,bhjd->bhid", weights, v)))


def _baddbmm(s: Any, x: Tensor) -> Tensor:
    q, k, v = (part.flatten(0, 1) for part in qkv(s, s.n(x)))
    empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
    weights = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=0.5).softmax(-1)
    return x + s.o(joined(torch.bmm(weights, v).unflatten(0, (-1, 3))))


def _fused(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    return x + s.o(joined(F.scaled_dot_product_attention(q, k, v)))


def _fused_bias(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    return x + s.o(joined(F.scaled_dot_product_attention(F.normalize(q, dim=-1), k, v, attn_mask=s.table, scale=2.0)))


def _relative_bias(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    bias = s.table[s.index.view(-1)].view(17, 17, 3).permute(2, 0, 1)
    return x + s.o(joined((q @ k.mT * 0.5 + bias.unsqueeze(0)).softmax(dim=-1) @ v))


def _data_bias(s: Any, x: Tensor) -> Tensor:
    """Scores plus a term of the queries and learned positions, as in relative attention of language models."""
    q, k, v = qkv(s, s.n(x))
    scores = q @ k.mT + torch.einsum("bhid,jd->bhij", q, s.places)
    return x + s.o(joined(scores.softmax(dim=-1) @ v))


def _rotary(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    angle = torch.arange(q.shape[2], device=x.device, dtype=x.dtype)[:, None] * 0.3
    angle = torch.cat([angle, angle, 2 * angle, 2 * angle], dim=-1)

    def turn(y: Tensor) -> Tensor:
        halves = torch.stack([-y[..., 1::2], y[..., ::2]], dim=-1).flatten(-2)
        return y * angle.cos() + halves * angle.sin()

    return x + s.o(joined((turn(q) @ turn(k).mT).softmax(-1) @ v))


def _linear_attention(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    memory = k.transpose(-2, -1) @ v
    normaliser = q @ k.sum(dim=2, keepdim=True).transpose(-2, -1)
    return x + s.o(joined(q @ memory / (normaliser + 1e-6)))


def _relu_attention(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    return x + s.o(joined((F.relu(q @ k.mT) / q.shape[2]) @ v))


def _talking_heads(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    scores = s.before((q @ k.mT).permute(0, 2, 3, 1)).softmax(dim=2)
    return x + s.o(joined(s.after(scores).permute(0, 3, 1, 2) @ v))


def _channel_attention(s: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(s, s.n(x))
    q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
    return x + s.o(joined((((q.mT @ k) * s.scale).softmax(-1) @ v.mT).mT))


def _query_pooling(s: Any, x: Tensor) -> Tensor:
    """A learned query gathers from all tokens (class attention); the rest passes on."""
    rows = s.n(x)
    k, v = (heads(part) for part in s.kv(rows).chunk(2, dim=-1))
    q = heads(s.query.expand(len(x), -1, -1))
    return torch.cat([s.o(joined((q @ k.mT).softmax(-1) @ v)), x[:, 1:]], dim=1)


def attention(function: Callable[[Any, Tensor], Tensor], **parts: Any) -> nn.Module:
    return on_rows(function, n=nn.LayerNorm(12), q=nn.Linear(12, 36), o=nn.Linear(12, 12), **parts)


def _perceptron(s: Any, x: Tensor) -> Tensor:
    return x + s.o(s.f(s, s.n(x)))


def gated(function: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return on_rows(_perceptron, n=nn.LayerNorm(12), i=nn.Linear(12, 48), o=nn.Linear(24, 12), f=function)


def _swiglu(s: Any, x: Tensor) -> Tensor:
    gate, value = s.i(x).chunk(2, dim=-1)
    return F.silu(gate) * value


def _geglu(s: Any, x: Tensor) -> Tensor:
    value, gate = s.i(x).split(24, dim=-1)
    return value * F.gelu(gate)


# Gates, products, normalisations -------------------------------------------------------------------------------------


def _squeeze(s: Any, x: Tensor) -> Tensor:
    gate = torch.sigmoid(s.up(F.relu(s.down(x.mean(dim=(2, 3))))))
    return x * gate[:, :, None, None]


def _squeeze_in_place(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    gate = F.hardsigmoid(s.up(F.relu(s.down(F.adaptive_avg_pool2d(x, 1).flatten(1)))), inplace=True)
    x *= gate.view(len(x), -1, 1, 1)
    return x.mul_(1.5)


def _spatial_gate(s: Any, x: Tensor) -> Tensor:
    found = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], dim=1)
    return x * s.a(found).sigmoid()


def _context(s: Any, x: Tensor) -> Tensor:
    weights = s.a(x).flatten(2).softmax(dim=-1)
    context = (x.flatten(2) * weights).sum(dim=-1)
    return x + s.up(F.relu(s.norm(s.down(context))))[:, :, None, None]


def _rms(s: Any, x: Tensor) -> Tensor:
    return x + s.o(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * s.weight)


def _layer_norm_by_hand(s: Any, x: Tensor) -> Tensor:
    u = x.mean(1, keepdim=True)
    v = (x - u).pow(2).mean(1, keepdim=True)
    return s.weight[:, None, None] * ((x - u) / torch.sqrt(v + 1e-6)) + s.bias[:, None, None]


def _response_norm(s: Any, x: Tensor) -> Tensor:
    size = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
    ratio = size / (size.mean(dim=1, keepdim=True) + 1e-6)
    return s.weight * (x * ratio) + s.bias + x


def _standardised(s: Any, x: Tensor) -> Tensor:
    return (x - x.mean(dim=(1, 2, 3), keepdim=True)) / x.std(dim=(1, 2, 3), keepdim=True)


def _variance_mean(s: Any, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, unbiased=False)
    return (x - mean) * (variance + 1e-5).rsqrt()


def _outer(s: Any, x: Tensor) -> Tensor:
    rows = s.a(x).flatten(2)
    return (rows @ rows.transpose(1, 2) / rows.shape[-1]).flatten(1)


def _outer_signed_root(s: Any, x: Tensor) -> Tensor:
    rows = s.a(x).flatten(2)
    found = torch.einsum("bil,bjl->bij", rows, rows).flatten(1) / rows.shape[-1]
    return F.normalize(torch.sign(found) * torch.sqrt(found.abs() + 1e-10))


def vector(function: Callable[[Any, Tensor], Tensor], width: int, classes: int = 5, **parts: Any) -> nn.Module:
    """Stem, a block that makes vectors of maps, a linear head."""
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.ReLU(), Block(function, **parts), nn.Linear(width, classes))


def _experts(s: Any, x: Tensor) -> Tensor:
    weights = s.router(x.mean((2, 3))).softmax(-1)
    return sum(weights[:, i, None, None, None] * F.relu(expert(x)) for i, expert in enumerate(s.experts))


def _best_experts(s: Any, x: Tensor) -> Tensor:
    weights, chosen = s.router(x.mean((2, 3))).softmax(-1).topk(2, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    every = torch.stack([F.relu(expert(x)) for expert in s.experts], dim=1)
    picked = every.gather(1, chosen[:, :, None, None, None].expand(-1, -1, *every.shape[2:]))
    return (picked * weights[:, :, None, None, None]).sum(1)


def _routed_tokens(s: Any, x: Tensor) -> Tensor:
    """Each token goes to one expert; outputs are written back to their places."""
    rows = s.n(x).reshape(-1, x.shape[-1])
    probabilities = s.router(rows).softmax(-1)
    weight, chosen = probabilities.max(-1)
    out = torch.zeros_like(rows)
    for i, expert in enumerate(s.experts):
        at = torch.nonzero(chosen == i).flatten()
        if len(at):
            out[at] = F.gelu(expert(rows[at])) * weight[at, None]
    return x + out.view_as(x)


def _transformed(s: Any, x: Tensor) -> Tensor:
    """A spatial transformer: where is sampled depends on the image, too."""
    theta = s.fc(x.mean((2, 3))).view(-1, 2, 3) * 0.1 + torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=x.dtype)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def _generalised_mean(s: Any, x: Tensor) -> Tensor:
    return F.avg_pool2d(x.clamp(min=1e-6).pow(s.p), x.shape[-2:]).pow(1.0 / s.p).flatten(1)


def _log_sum_exp(s: Any, x: Tensor) -> Tensor:
    return torch.logsumexp(x.flatten(2), dim=-1) - math.log(x[0, 0].numel())


def _largest(s: Any, x: Tensor) -> Tensor:
    flat = s.a(x).flatten(2)
    return flat.topk(5, dim=-1).values.mean(-1) + flat.sort(dim=-1).values[..., 0] + x.amax((2, 3)) + x.amin((2, 3))


def _cosine_head(s: Any, x: Tensor) -> Tensor:
    return 10 * F.linear(F.normalize(x.mean((2, 3)), dim=1), F.normalize(s.weight, dim=1))


def _prototypes(s: Any, x: Tensor) -> Tensor:
    return -torch.cdist(x.mean((2, 3)), s.weight)


def _radial(s: Any, x: Tensor) -> Tensor:
    return torch.exp(-(x.mean((2, 3))[:, None] - s.weight).pow(2).sum(-1))


def _squash(s: Any, x: Tensor) -> Tensor:
    rows = x.flatten(2).unflatten(1, (2, 4)).transpose(2, 3)
    square = (rows**2).sum(-1, keepdim=True)
    return ((square / (1 + square)) * (rows / torch.sqrt(square + 1e-8))).mean(2).flatten(1)


def _highway(s: Any, x: Tensor) -> Tensor:
    gate = torch.sigmoid(s.b(x))
    return gate * F.relu(s.a(x)) + (1 - gate) * x


def _divided(s: Any, x: Tensor) -> Tensor:
    return s.a(x / (x.abs().amax(dim=(1, 2, 3), keepdim=True) + 1e-3)) / s.t.exp()


def _lerp(s: Any, x: Tensor) -> Tensor:
    return torch.lerp(x, s.a(x), 0.3) + torch.addcmul(x, s.a(x), s.w[:, None, None], value=0.5)


def _dynamic(s: Any, x: Tensor) -> Tensor:
    """CondConv: the kernel is a mixture that depends on the image, run as one grouped convolution."""
    weights = torch.sigmoid(s.router(x.mean((2, 3))))
    kernels = (weights @ s.kernels.flatten(1)).view(-1, WIDTH, 3, 3)
    n, c, h, w = x.shape
    return F.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n).view(n, -1, h, w)


def _involution(s: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    kernel = s.k(x).view(n, 1, 9, h, w)
    return (kernel * F.unfold(x, 3, padding=1).view(n, c, 9, h, w)).sum(2)


def _windows_first(s: Any, x: Tensor) -> Tensor:
    """Nine windows of two rows each, stacked over the images, through linear layers with biases, and back."""
    windows = x.unflatten(1, (9, 2)).transpose(0, 1).flatten(0, 1)
    windows = s.b(F.gelu(s.a(s.n(windows)))) + windows.flip(1)
    return windows.unflatten(0, (9, -1)).transpose(0, 1).flatten(1, 2) + x


def _channels_first(s: Any, x: Tensor) -> Tensor:
    """Channels before images, as in a functional style over groups."""
    y = F.relu(s.a(x)).transpose(0, 1)
    return (torch.addcmul(s.w.view(-1, 1, 1, 1), y, s.v.view(-1, 1, 1, 1)) + 0.3).transpose(0, 1)


def _checkpointed(s: Any, x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(s.block, x, use_reentrant=False) + x


# Convolutions, shapes ------------------------------------------------------------------------------------------------


def _dense(s: Any, x: Tensor) -> Tensor:
    found = [x]
    for norm, layer in zip(s.norms, s.layers, strict=True):
        found.append(layer(F.relu(norm(torch.cat(found, dim=1)))))
    return torch.cat(found, dim=1)


def _preactivated(s: Any, x: Tensor) -> Tensor:
    y = F.relu(s.n1(x))
    return s.b(F.relu(s.n2(s.a(y)))) + s.short(y)


def _up_and_down(s: Any, x: Tensor) -> Tensor:
    y = F.relu(s.down(x))
    return torch.cat([F.relu(s.up(y)), F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)], dim=1)


def _shuffled(s: Any, x: Tensor) -> Tensor:
    y = F.pixel_shuffle(s.a(F.pixel_unshuffle(x, 2)), 2)
    y = torch.roll(y.flip(-1), shifts=(1, 2), dims=(2, 3))
    y = y.view(len(y), 2, -1, *y.shape[2:]).transpose(1, 2).reshape(x.shape)
    return torch.stack([y, x], dim=0).sum(0).unbind(1)[0].unsqueeze(1).repeat(1, 2, 1, 1) + x[:, :2]


def _coordinates(s: Any, x: Tensor) -> Tensor:
    n, _, h, _ = x.shape
    line = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(n, -1, -1, -1)
    return s.a(torch.cat([x, grid], dim=1))


def _volumes(s: Any, x: Tensor) -> Tensor:
    return s.n(s.a(x.unsqueeze(1))).relu().mean(dim=1)


def _lines(s: Any, x: Tensor) -> Tensor:
    return F.max_pool1d(F.relu(s.a(x.flatten(2))), 2).unflatten(-1, (8, 4))


def _pools(s: Any, x: Tensor) -> Tensor:
    y = (
        F.max_pool2d(s.a(x), 3, 2, 1)
        + F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        + F.lp_pool2d(x.relu() + 0.1, 2, 2)
    )
    return y + F.adaptive_max_pool2d(x, y.shape[-2:])


def _maxout(s: Any, x: Tensor) -> Tensor:
    y = s.a(x).unflatten(1, (2, WIDTH)).max(dim=1).values
    return torch.cat([F.relu(y), F.relu(-y)], dim=1)


def _flow(s: Any, x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=1)
    other = other * torch.exp(torch.tanh(s.a(one))) + s.b(one)
    return torch.cat([other, one], dim=1)


def _unfolded_twice(s: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.tanh(s.a(x) + 0.5 * x)
    return x


# Hidden from a mode, or without a rule that anyone would expect ------------------------------------------------------


class Frugal(torch.autograd.Function):
    """SiLU that keeps its input only, as in old EfficientNets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return upper[0] * (s * (1 + x * (1 - s)))


class Through(torch.autograd.Function):
    """Signs forward, the identity backward: binary networks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> Tensor:
        return upper[0]


def _scripted_mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return on_maps(lambda s, x: s.f(x), f=torch.jit.script(_scripted_mish))


def _fourier(s: Any, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x, dim=(2, 3), norm="ortho")
    return torch.fft.irfft2(spectrum * torch.view_as_complex(s.weight), s=x.shape[2:], dim=(2, 3), norm="ortho")


def _fourier_amplitude(s: Any, x: Tensor) -> Tensor:
    return s.a(torch.fft.fft2(x).abs().add(1e-3).log())


def _recurrent(s: Any, x: Tensor) -> Tensor:
    return s.r(x)[0]


def _recurrent_by_hand(s: Any, x: Tensor) -> Tensor:
    state = x.new_zeros(len(x), 12)
    found = []
    for row in x.unbind(1):
        i, f, g, o = (s.i(row) + s.h(state)).chunk(4, dim=-1)
        state = torch.sigmoid(o) * torch.tanh(torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * state)
        found.append(state)
    return torch.stack(found, dim=1) + x


def _cell(s: Any, x: Tensor) -> Tensor:
    state = (x.new_zeros(len(x), 12), x.new_zeros(len(x), 12))
    for row in x.unbind(1):
        state = s.r(row, state)
    return x + state[0][:, None]


def _deformed(s: Any, x: Tensor) -> Tensor:
    from torchvision.ops import deform_conv2d

    return deform_conv2d(x, 0.5 * s.offset(x), s.weight, padding=1)


# Whole models --------------------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """Takes pixels in [0, 255] and normalises them itself."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.net = plain(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x / 2 + 0.5).sub(self.mean).div(self.std))


class Ending(nn.Module):
    """A network that returns what follows its logits, or its logits in a package of some kind."""

    def __init__(self, net: nn.Module, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.end = net, end

    def before(self, x: Tensor) -> Tensor:
        return self.net(x)

    def forward(self, x: Tensor) -> Any:
        return self.end(self.net(x))


class Twice(nn.Module):
    """The head's linear layer is used twice, with a ReLU between."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(128, 128), nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).flatten(1)
        return self.head(self.shared(torch.relu(self.shared(x))))


class Branches(nn.Module):
    """Branches over scales that end in a list, and a head that sums their logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Conv2d(3, 6, 3, stride, 1) for stride in (1, 2, 4))
        self.heads = nn.ModuleList(nn.Linear(6, classes) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        features = [F.gelu(stem(x)).mean((-2, -1)) for stem in self.stems]
        return torch.stack([head(f) for head, f in zip(self.heads, features, strict=True)]).mean(0)


class Decoder(nn.Module):
    """Learned queries look at the image's tokens through torch's decoder layer; one logit for each query."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches, self.queries = nn.Conv2d(3, 12, 4, 4), values(1, classes, 12)
        self.layer = nn.TransformerDecoderLayer(12, 3, 24, batch_first=True)
        self.head = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.layer(self.queries.expand(len(x), -1, -1), rows)).squeeze(-1)


class Complex(nn.Module):
    """Complex numbers between: what leaves them is an absolute value."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.re, self.im, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.complex(self.re(x), self.im(x)).abs().mean((2, 3)))


def plain(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), conv(),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


def _normed(norm: nn.Module) -> Callable[[], nn.Module]:
    return lambda: on_maps(lambda s, x: F.relu(s.n(s.a(x))), a=conv(), n=norm())


def _layers(make: Callable[[], nn.Module], width: int = WIDTH) -> Callable[[], nn.Module]:
    return lambda: on_maps(lambda s, x: F.relu(s.a(F.relu(x))), width, a=make())


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return on_maps(lambda s, x: F.relu(s.a(x)), a=torch.nn.utils.weight_norm(conv()))


class Hooked(nn.Module):
    """Has hooks of the user's own, one of which changes what a layer returns."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net, self.seen = plain(classes), 0
        self.net[4].register_forward_hook(lambda _m, _i, output: output * 1.5 + 0.2)
        self.net[0].register_forward_pre_hook(lambda _m, inputs: (inputs[0] * 2,))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class HalfPrecision(nn.Module):
    """Asks for half precision in its own forward."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = plain(classes)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).to(x.dtype)


class Frozen(nn.Module):
    """Features under no_grad, as in linear probing."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        net = plain(classes)
        self.features, self.head = net[:-1], net[-1]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features(x)
        return self.head(features)


def _adapted(classes: int) -> nn.Module:
    import peft

    net = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.Linear(128, 16), nn.GELU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, classes),
    )  # fmt: skip
    config = peft.LoraConfig(r=2, target_modules=["2", "4"], modules_to_save=["6"], lora_dropout=0.1)
    return peft.get_peft_model(net, config)


def _averaged(classes: int) -> nn.Module:
    from torch.optim.swa_utils import AveragedModel

    return AveragedModel(plain(classes))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "ELU": F.elu,
    "SELU": F.selu,
    "CELU": F.celu,
    "Mish": F.mish,
    "ReLU6": F.relu6,
    "Hardswish": F.hardswish,
    "Hardsigmoid": F.hardsigmoid,
    "Hardtanh": F.hardtanh,
    "LeakyReLU": lambda x: F.leaky_relu(x, 0.2),
    "RReLU": F.rrelu,
    "GELU": F.gelu,
    "GELU with tanh": lambda x: F.gelu(x, approximate="tanh"),
    "GELU by hand": lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "quick GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "SiLU": F.silu,
    "SiLU by hand": lambda x: x * torch.sigmoid(x),
    "SiLU in place": lambda x: F.silu(x * 1.5, inplace=True),
    "GELU with tanh by hand": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
    "Mish by hand": lambda x: x * torch.tanh(F.softplus(x)),
    "Hardswish by hand": lambda x: x * F.relu6(x + 3) / 6,
    "ELU and clamp in place": lambda x: F.elu(x.clone().clamp_(-1, 2), inplace=True),
    "GLU": lambda x: F.glu(torch.cat([x, x.flip(1)], 1), dim=1),
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": lambda x: F.threshold(x, 0.2, -0.1),
    "x ** 2": lambda x: x**2,
    "x * x": lambda x: x * x,
    "x.pow(3)": lambda x: x.pow(3),
    "squared ReLU": lambda x: F.relu(x).square(),
    "abs": torch.abs,
    "sine": lambda x: torch.sin(2 * x),
    "cosine": torch.cos,
    "exp": lambda x: torch.exp(-x.abs()),
    "log1p": lambda x: torch.log1p(x.abs()),
    "root": lambda x: (x.relu() + 0.1).sqrt(),
    "bent": lambda x: ((x**2 + 1).sqrt() - 1) / 2 + x,
    "reciprocal": lambda x: 1 / (1 + x.abs()),
    "atan": torch.atan,
    "asinh": torch.asinh,
    "snake": lambda x: x + torch.sin(x) ** 2,
    "sign": lambda x: torch.sign(x) + x,
    "floor": lambda x: torch.floor(2 * x) / 2 + x,
    "remainder": lambda x: torch.remainder(x, 1.0),
    "clip and shift": lambda x: torch.clip(x, 0, 1) - 0.5,
    "softmax of channels": lambda x: x.softmax(dim=1),
    "log softmax of channels": lambda x: F.log_softmax(x, dim=1),
}


def home_made(family: Any, k: int) -> Iterator[Any]:
    """Yield a `family` for each; `k` is the number of classes."""
    p = torch.nn.utils.parametrizations
    small = (3, 16, 16)

    def own(name: str, make: Callable[[], nn.Module], verdict: str = "exact", **rest: Any) -> Any:
        return family(f"own/{name}", rest.pop("source", "own"), make, small, verdict, **rest)

    for name, function in ACTIVATIONS.items():
        yield own(f"hidden {name}", lambda f=function: on_maps(lambda s, x: s.a(f(x)), a=conv()))
    yield own("hidden PReLU", lambda: on_maps(lambda s, x: s.p(s.a(x)), a=conv(), p=nn.PReLU(WIDTH)))

    two = {"a": conv, "b": conv}
    maps: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, Callable[[], Any]]]] = {
        "x + f(x)": (_plus, two), "y += x": (_plus_in_place, two), "add with alpha": (_plus_by_method, two),
        "slices in place": (_slices, two), "new buffers": (_new_buffer, two), "where and clamp": (_selected, two),
        "layer scale": (lambda s, x: x + s.g[:, None, None] * s.a(x).relu(), {"a": conv, "g": lambda: values(WIDTH)}),
        "squeeze-excitation": (_squeeze, {"down": lambda: nn.Linear(8, 4), "up": lambda: nn.Linear(4, 8)}),
        "squeeze-excitation in place": (
            _squeeze_in_place, {"a": conv, "down": lambda: nn.Linear(8, 4), "up": lambda: nn.Linear(4, 8)},
        ),
        "spatial gate": (_spatial_gate, {"a": lambda: conv(2, 1, 7)}),
        "global context": (_context, {
            "a": lambda: conv(8, 1, 1), "down": lambda: nn.Linear(8, 4), "norm": lambda: nn.LayerNorm(4),
            "up": lambda: nn.Linear(4, 8),
        }),
        "highway": (_highway, two),
        "layer norm by hand": (_layer_norm_by_hand, {"weight": lambda: values(WIDTH), "bias": lambda: values(WIDTH)}),
        "global response norm": (
            _response_norm, {"weight": lambda: values(1, WIDTH, 1, 1), "bias": lambda: values(1, WIDTH, 1, 1)},
        ),
        "standardised images": (_standardised, {}), "var_mean": (_variance_mean, {}),
        "soft experts": (_experts, {
            "router": lambda: nn.Linear(8, 3), "experts": lambda: nn.ModuleList(conv() for _ in range(3)),
        }),
        "top-2 experts": (_best_experts, {
            "router": lambda: nn.Linear(8, 3), "experts": lambda: nn.ModuleList(conv() for _ in range(3)),
        }),
        "spatial transformer": (_transformed, {"fc": lambda: nn.Linear(8, 6)}),
        "division by maximum": (_divided, {"a": conv, "t": lambda: values(1)}),
        "lerp and addcmul": (_lerp, {"a": conv, "w": lambda: values(WIDTH)}),
        "dynamic convolution": (_dynamic, {
            "router": lambda: nn.Linear(8, 3), "kernels": lambda: values(3, WIDTH * WIDTH * 9, size=0.1),
        }),
        "involution": (_involution, {"k": lambda: conv(8, 9, 1)}),
        "pre-activation": (_preactivated, {
            "n1": lambda: nn.BatchNorm2d(8), "n2": lambda: nn.BatchNorm2d(8), "a": conv, "b": conv,
            "short": lambda: conv(k=1),
        }),
        "depthwise separable": (
            lambda s, x: F.relu6(s.b(F.relu6(s.n(s.a(x))))),
            {"a": lambda: conv(groups=8), "n": lambda: nn.BatchNorm2d(8), "b": lambda: conv(k=1)},
        ),
        "shuffles and rolls": (_shuffled, {"a": lambda: conv(32, 32)}),
        "coordinates": (_coordinates, {"a": lambda: conv(10, 8)}),
        "Conv3d": (_volumes, {"a": lambda: nn.Conv3d(1, 4, 3, padding=1), "n": lambda: nn.BatchNorm3d(4)}),
        "Conv1d": (_lines, {"a": lambda: nn.Conv1d(8, 8, 3, padding=1)}),
        "pools": (_pools, {"a": conv}), "coupling flow": (_flow, {"a": lambda: conv(4, 4), "b": lambda: conv(4, 4)}),
        "recurrent convolution": (_unfolded_twice, {"a": conv}),
        "functional batch norm": (
            lambda s, x: F.relu(F.batch_norm(x, s.m, s.v, s.w, s.b)),
            {
                "m": lambda: values(8).detach(), "v": lambda: torch.ones(8) * 0.7, "w": lambda: values(8),
                "b": lambda: values(8),
            },
        ),
        "spectral norm": (lambda s, x: F.relu(s.a(x)), {"a": lambda: p.spectral_norm(conv())}),
        "weight norm": (lambda s, x: F.relu(s.a(x)), {"a": lambda: p.weight_norm(conv())}),
    }  # fmt: skip
    widths = {"shuffles and rolls": 2}
    for name, (function, parts) in maps.items():
        width = widths.get(name, WIDTH)
        yield own(name, lambda f=function, w=width, parts=parts: on_maps(f, w, **{n: m() for n, m in parts.items()}))
    yield own("old weight norm", _old_weight_norm)
    yield own("DenseNet-like cat", lambda: on_maps(
        _dense, 16, norms=nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(2)),
        layers=nn.ModuleList(conv(8 + 4 * i, 4) for i in range(2)),
    ))  # fmt: skip
    yield own("transposed and upsampled", lambda: on_maps(
        _up_and_down, 14, down=nn.Conv2d(8, 6, 3, 2, 1), up=nn.ConvTranspose2d(6, 8, 4, 2, 1),
    ))  # fmt: skip
    yield own("maxout and CReLU", lambda: on_maps(_maxout, 16, a=conv(8, 16)))

    for mode in ("reflect", "circular", "replicate"):
        yield own(f"padding {mode}", _layers(lambda mode=mode: conv(padding_mode=mode)))
    yield own("padding same", _layers(lambda: conv(k=4, padding="same")))
    yield own("grouped and dilated", _layers(lambda: conv(groups=4, dilation=2, padding=2)))
    yield own("F.pad and strides", lambda: on_maps(
        lambda s, x: F.relu(s.a(F.pad(F.pad(x, (1, 2, 0, 1), mode="reflect"), (0, 0, 1, 1), value=0.5))),
        a=nn.Conv2d(8, 8, 3, stride=(2, 1)),
    ))  # fmt: skip

    norms: dict[str, Callable[[], nn.Module]] = {
        "BatchNorm2d": lambda: nn.BatchNorm2d(8), "BatchNorm2d, no statistics": lambda: nn.BatchNorm2d(8, affine=False),
        "InstanceNorm2d": lambda: nn.InstanceNorm2d(8),
        "InstanceNorm2d, affine": lambda: nn.InstanceNorm2d(8, affine=True),
        "InstanceNorm2d, running": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        "GroupNorm": lambda: nn.GroupNorm(2, 8), "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
        "LayerNorm over maps": lambda: nn.LayerNorm([8, 8, 8]),
        "LayerNorm of channels": lambda: Block(
            lambda s, x: s.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm(8)
        ),
        "F.group_norm": lambda: Block(lambda s, x: F.group_norm(x, 4)),
    }  # fmt: skip
    for name, make in norms.items():
        yield own(name, _normed(make))
    yield own("RMSNorm", lambda: on_rows(lambda s, x: x + s.o(s.n(x)), n=nn.RMSNorm(12), o=nn.Linear(12, 12)))
    yield own("RMSNorm by hand", lambda: on_rows(_rms, o=nn.Linear(12, 12), weight=values(12)))

    index = (torch.arange(17)[:, None] - torch.arange(17)[None] + 16).contiguous()
    own_attention: dict[str, Callable[[], nn.Module]] = {
        "matmul, masked": lambda: attention(_matmul_masked), "matmul, additive mask": lambda: attention(_additive_mask),
        "einsum": lambda: attention(_einsum), "baddbmm": lambda: attention(_baddbmm),
        "fused": lambda: attention(_fused),
        "fused, cosine and bias": lambda: attention(_fused_bias, table=values(1, 3, 17, 17)),
        "relative bias": lambda: attention(_relative_bias, table=values(33, 3), index=index),
        "bias from queries": lambda: attention(_data_bias, places=values(17, 4)),
        "rotary": lambda: attention(_rotary), "linear": lambda: attention(_linear_attention),
        "relu": lambda: attention(_relu_attention),
        "talking heads": lambda: attention(_talking_heads, before=nn.Linear(3, 3), after=nn.Linear(3, 3)),
        "over channels": lambda: attention(_channel_attention, scale=values(3, 1, 1)),
        "learned query": lambda: on_rows(
            _query_pooling, n=nn.LayerNorm(12), kv=nn.Linear(12, 24), o=nn.Linear(12, 12), query=values(1, 1, 12)
        ),
    }  # fmt: skip
    for name, make in own_attention.items():
        yield own(f"attention: {name}", make)
    for name, function in {
        "GLU": lambda s, x: F.glu(s.i(x), dim=-1), "SwiGLU": _swiglu, "GEGLU": _geglu,
        "bilinear gate": lambda s, x: math.prod(s.i(x).chunk(2, -1)),
    }.items():  # fmt: skip
        yield own(f"MLP: {name}", lambda f=function: gated(f))
    yield own("routed tokens", lambda: on_rows(
        _routed_tokens, n=nn.LayerNorm(12), router=nn.Linear(12, 3),
        experts=nn.ModuleList(nn.Linear(12, 12) for _ in range(3)),
    ))  # fmt: skip

    yield own("windows before images", lambda: Even(Block(
        _windows_first, n=nn.LayerNorm(12), a=nn.Linear(12, 24), b=nn.Linear(24, 12)
    )))  # fmt: skip
    yield own("batch norm before rows", lambda: nn.Sequential(  # torch 2.15's gradient is wrong for one image alone
        nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), Block(lambda s, x: x.flatten(2).transpose(1, 2)), nn.LayerNorm(6),
        nn.Linear(6, 12), nn.GELU(), Block(lambda s, x: x.mean(1)), nn.Linear(12, k),
    ))  # fmt: skip
    yield own("channels before images", lambda: on_maps(
        _channels_first, 6, a=conv(8, 6), w=values(6), v=values(6)
    ))  # fmt: skip
    yield own("18 rows first", lambda: Even(Block(
        lambda s, x: s.l(x.transpose(0, 1)).transpose(0, 1), l=nn.TransformerEncoderLayer(12, 3, 24)
    )))  # fmt: skip
    yield own("18 rows, batch first", lambda: Even(nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)))

    encoder = {"d_model": 12, "nhead": 3, "dim_feedforward": 24}
    layers: dict[str, dict[str, Any]] = {
        "TransformerEncoderLayer": {"batch_first": True},
        "TransformerEncoderLayer, norm first": {"batch_first": True, "norm_first": True, "activation": "gelu"},
        "TransformerEncoderLayer, GELU": {"batch_first": True, "activation": F.gelu, "bias": False},
    }
    for name, options in layers.items():
        yield own(name, lambda o=options: on_rows(lambda s, x: s.l(x), l=nn.TransformerEncoderLayer(**encoder, **o)))
    yield own("TransformerEncoderLayer, rows first", lambda: on_rows(
        lambda s, x: s.l(x.transpose(0, 1)).transpose(0, 1), l=nn.TransformerEncoderLayer(**encoder)
    ))  # fmt: skip
    yield own("TransformerEncoder", lambda: on_rows(lambda s, x: s.l(x), l=nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**encoder, batch_first=True), 2, enable_nested_tensor=False
    )))  # fmt: skip
    yield own("TransformerDecoderLayer", lambda: Decoder(k))
    heads_: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]] = {
        "batch first": (lambda s, x: x + s.l(x, x, x, need_weights=False)[0], {"batch_first": True}),
        "batch first, weights": (lambda s, x: x + s.l(x, x, x)[0], {"batch_first": True}),
        "rows first": (lambda s, x: x + s.l(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), {}),
        "other keys": (
            lambda s, x: x + s.l(x, x[..., :6], x[..., 6:], average_attn_weights=False)[0],
            {"batch_first": True, "kdim": 6, "vdim": 6},
        ),
        "bias and zero rows": (
            lambda s, x: x + s.l(x, x, x, need_weights=False)[0],
            {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True},
        ),
        "masked": (
            lambda s, x: x + s.l(x, x, x, attn_mask=torch.ones(17, 17, dtype=torch.bool).triu(4))[0],
            {"batch_first": True},
        ),
    }  # fmt: skip
    for name, (function, options) in heads_.items():
        yield own(
            f"MultiheadAttention: {name}", lambda f=function, o=options: on_rows(f, l=nn.MultiheadAttention(12, 3, **o))
        )

    vectors: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, dict[str, Callable[[], Any]]]] = {
        "outer product": (_outer, 16, {"a": lambda: conv(8, 4)}),
        "outer product, signed root": (_outer_signed_root, 16, {"a": lambda: conv(8, 4)}),
        "generalised mean": (_generalised_mean, 8, {"p": lambda: nn.Parameter(torch.ones(1) * 3)}),
        "log-sum-exp pooling": (_log_sum_exp, 8, {}), "top-5, sort, extrema": (_largest, 8, {"a": conv}),
        "capsules": (_squash, 8, {}), "radial basis": (_radial, 6, {"weight": lambda: values(6, 8)}),
        "prototypes by distance": (_prototypes, 6, {"weight": lambda: values(6, 8)}),
        "cosine classifier": (_cosine_head, 6, {"weight": lambda: values(6, 8)}),
        "nn.Bilinear": (lambda s, x: s.b(x.mean((2, 3)), x.amax((2, 3))), 6, {"b": lambda: nn.Bilinear(8, 8, 6)}),
        "BatchNorm1d": (lambda s, x: s.n(s.f(x.flatten(1))).relu(), 8, {
            "f": lambda: nn.Linear(512, 8), "n": lambda: nn.BatchNorm1d(8),
        }),
    }  # fmt: skip
    for name, (function, width, parts) in vectors.items():
        yield own(name, lambda f=function, w=width, parts=parts: vector(f, w, k, **{n: m() for n, m in parts.items()}))

    yield own("functional only", lambda: vector(
        lambda s, x: F.adaptive_avg_pool2d(F.max_pool2d(F.relu(F.conv2d(x, s.w, s.b)), 2), 1)[..., 0, 0], 6, k,
        w=values(6, 8, 3, 3, size=0.2), b=values(6),
    ))  # fmt: skip
    yield own("one linear layer used twice", lambda: Twice(k))
    yield own("normalises its input", lambda: Normalised(k))
    yield own("branches", lambda: Branches(k))
    yield own("one logit", lambda: plain(1))
    yield own("tuple", lambda: Ending(plain(k), lambda y: (y, y[:, :3, None, None].expand(-1, -1, 4, 4))))
    yield own("mapping", lambda: Ending(plain(k), lambda y: {"logits": y, "extra": None}))
    yield own("log softmax at the end", lambda: Ending(plain(k), lambda y: F.log_softmax(y, dim=1)), end="log_softmax")
    yield own("softmax at the end", lambda: Ending(plain(k), lambda y: torch.softmax(y, dim=-1)), end="softmax")
    yield own("sigmoid at the end", lambda: Ending(plain(k), torch.sigmoid), end="sigmoid")
    yield own("averaged weights", lambda: _averaged(k))
    yield own("DataParallel", lambda: nn.DataParallel(plain(k)))
    yield own("frozen", lambda: plain(k).requires_grad_(False))
    yield own("channels last", lambda: plain(k).to(memory_format=torch.channels_last))
    yield own("LoRA", lambda: _adapted(k), source="peft")

    yield own("users' hooks", lambda: Hooked(k))
    yield own("checkpointed", lambda: on_maps(_checkpointed, block=nn.Sequential(conv(), nn.GELU(), conv())))
    yield own("compiled", lambda: torch.compile(plain(k), backend="eager"), heavy=True)
    yield own("half precision inside", lambda: HalfPrecision(k), "flagged")
    yield own("features under no_grad", lambda: Frozen(k), "flagged")
    yield own("branch behind detach", lambda: on_maps(
        lambda s, x: s.a(x) + s.b(x.detach()).relu(), a=conv(), b=conv()
    ), "flagged")  # fmt: skip
    yield own(
        "vmap", lambda: on_maps(lambda s, x: torch.vmap(lambda image: F.gelu(image) + 0.1)(s.a(x)), a=conv()), "flagged"
    )

    # a mode does not see into these, or nobody would expect a rule
    yield own("custom autograd function", lambda: on_maps(lambda s, x: s.a(Frugal.apply(x)), a=conv()), "flagged")
    yield own("straight-through signs", lambda: on_maps(lambda s, x: s.a(Through.apply(x)), a=conv()), "flagged")
    yield own("scripted activation", _scripted, "flagged")
    yield own("Fourier filter", lambda: on_maps(_fourier, weight=values(8, 8, 5, 2)), "flagged")
    yield own("Fourier amplitudes", lambda: on_maps(_fourier_amplitude, a=conv()), "flagged")
    yield own("complex numbers", lambda: Complex(k), "flagged")
    yield own("LSTM", lambda: on_rows(_recurrent, r=nn.LSTM(12, 12, batch_first=True)), "flagged")
    yield own("GRU", lambda: on_rows(_recurrent, 24, r=nn.GRU(12, 12, batch_first=True, bidirectional=True)), "flagged")
    yield own("RNN", lambda: on_rows(_recurrent, r=nn.RNN(12, 12, batch_first=True)), "flagged")
    yield own("LSTMCell", lambda: on_rows(_cell, r=nn.LSTMCell(12, 12)), "flagged")
    yield own("LSTM by hand", lambda: on_rows(_recurrent_by_hand, i=nn.Linear(12, 48), h=nn.Linear(12, 48)))
    yield own("deformable convolution", lambda: on_maps(
        _deformed, offset=conv(8, 18), weight=values(8, 8, 3, 3, size=0.1)
    ), "flagged")  # fmt: skip
