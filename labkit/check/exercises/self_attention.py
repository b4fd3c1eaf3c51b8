"""Self-attention from tokens to tokens: one product makes q, k and v, heads share out the channels, one joins them."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from labkit import vit
from labkit.check.exercise import Exercise, normal


def reference(x, qkv, proj, heads):
    attn = vit.Attention(x.shape[-1], heads, impl="plain")
    attn.qkv, attn.proj = qkv, proj
    return attn(x)


task = Exercise(
    lesson="04_build_a_vit",
    reference=reference,
    source="labkit.vit.Attention",
    axes=("batch", "token", "d"),
    hints=(
        '`q, k, v = rearrange(qkv(x), "b n (three h d) -> three b h n d", three=3, h=heads)`.',
        'The scores are divided by the root of the width of one head; the way back is "b h n d -> b n (h d)".',
    ),
    praise="This is the attention of a plain ViT; it takes timm's weights as they are.",
)


@task.stub
def self_attention(x, qkv, proj, heads):
    """Write `self_attention(x, qkv, proj, heads)` for tokens x (batch, n, d). The layer `qkv` makes 3d numbers of each
    token: all of q, then all of k, then all of v. Of each of these, the first head has the first d / heads channels,
    the second the next, and so on. Every head attends alone; their results are joined again and go through `proj`.
    """
    return torch.zeros_like(x)


@task.cases
def cases(dice):
    for batch, n, d, heads in ((1, 3, 4, 2), (2, 5, 8, 4), (3, 4, 6, 3)):
        with torch.random.fork_rng(devices=[]):
            layers = nn.Linear(d, 3 * d), nn.Linear(d, d)
        for weight in (weight for layer in layers for weight in layer.parameters()):
            weight.requires_grad_(False).copy_(normal(dice, *weight.shape))
        yield normal(dice, batch, n, d), *layers, heads


def attend(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


def split(x, qkv, heads):
    return rearrange(qkv(x), "b n (three h d) -> three b h n d", three=3, h=heads)


@task.mistake(
    "You divided by the root of d, the width of a token. A score is a product of two vectors of one head: divide by "
    "the root of d / heads."
)
def divided_by_token_width(x, qkv, proj, heads):
    q, k, v = split(x, qkv, heads)
    attn = (q @ k.transpose(-2, -1) / x.shape[-1] ** 0.5).softmax(dim=-1)
    return proj(rearrange(attn @ v, "b h n d -> b n (h d)"))


@task.mistake(
    "You reshaped (batch, n, d) to (batch, heads, n, d / heads) in one go, which deals tokens out to the heads. "
    "Split d into (heads, d / heads) first, then swap heads and n."
)
def reshaped_in_one_go(x, qkv, proj, heads):
    b, n, d = x.shape
    q, k, v = (t.reshape(b, heads, n, d // heads) for t in qkv(x).chunk(3, dim=-1))
    return proj(attend(q, k, v).transpose(1, 2).reshape(b, n, d))


@task.mistake(
    "You joined the heads by reshaping (batch, heads, n, d / heads) to (batch, n, d): the numbers of different "
    "tokens get mixed. Swap heads and n first."
)
def joined_in_one_go(x, qkv, proj, heads):
    return proj(attend(*split(x, qkv, heads)).reshape(x.shape))


@task.mistake("There is one head only: all d channels meet in one product. Split q, k and v into `heads` slices first.")
def one_head(x, qkv, proj, heads):
    return proj(attend(*qkv(x).chunk(3, dim=-1)))


@task.mistake(
    "You gave each head a q, k and v that stand side by side. In the result of `qkv` come all channels of q first, "
    "then all of k, then all of v."
)
def heads_before_qkv(x, qkv, proj, heads):
    q, k, v = rearrange(qkv(x), "b n (h three d) -> three b h n d", three=3, h=heads)
    return proj(rearrange(attend(q, k, v), "b h n d -> b n (h d)"))


@task.mistake("The last step is missing: without `proj` the channels of different heads never meet.")
def not_projected(x, qkv, proj, heads):
    return rearrange(attend(*split(x, qkv, heads)), "b h n d -> b n (h d)")


@task.mistake(
    "The scores are not divided by the root of d / heads: the wider a head, the more its softmax sees one key only."
)
def not_scaled(x, qkv, proj, heads):
    q, k, v = split(x, qkv, heads)
    return proj(rearrange((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v, "b h n d -> b n (h d)"))


@task.mistake(
    "The softmax runs over the queries; a token shares out its 1 among the keys, the last axis of the scores."
)
def softmax_over_queries(x, qkv, proj, heads):
    q, k, v = split(x, qkv, heads)
    attn = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-2)
    return proj(rearrange(attn @ v, "b h n d -> b n (h d)"))
