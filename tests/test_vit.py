"""The plain ViT does what the paper says, in both implementations, and whatever is plugged into it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from labkit.distill import DistilledViT
from labkit.errors import LabkitError
from labkit.pooling import AttentionPool
from labkit.vit import Attention, Block, LayerScale, PatchEmbed, ViT, resample_positions
from tests import checks

SMALL = {"image_size": 32, "patch_size": 8, "classes": 10, "dim": 24, "depth": 3, "heads": 3}


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape or (2, 3, 32, 32), generator=torch.Generator().manual_seed(1))


def scrambled(model: nn.Module) -> nn.Module:
    """Random values everywhere: zeros and ones, as at the start of training, would hide a part that is not used."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return model.eval()


def vit(kind: type[ViT] = ViT, **options) -> ViT:
    return scrambled(kind(**{**SMALL, **options}))


POOLS = {
    "class": {},
    "registers": {"registers": 2, "layer_scale": 0.1, "prefix_positions": False},
    "avg": {"pool": "avg", "registers": 1},
    "module": {"pool": AttentionPool(24, 3)},
    "distilled": {"kind": DistilledViT},
}


@pytest.fixture(params=POOLS)
def model(request) -> ViT:
    return vit(**POOLS[request.param])


# --- what the paper says -------------------------------------------------------------------------------------
@pytest.mark.paper("S207")
def test_a_patch_embedding_is_a_linear_layer_on_unfolded_patches():
    embed = PatchEmbed(8, 3, 24).double()
    x, grid = embed(images(2, 3, 32, 48).double())
    assert grid == (4, 6)
    patches = F.unfold(images(2, 3, 32, 48).double(), kernel_size=8, stride=8).transpose(1, 2)
    checks.equal(F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias), x, 1e-12)


@pytest.mark.paper("S207")
def test_equals_torchvision():
    from torchvision.models import VisionTransformer

    theirs = scrambled(VisionTransformer(32, 8, 3, 3, 24, 96, num_classes=10))
    names = {
        "class_token": "cls_token",
        "conv_proj": "patch_embed.proj",
        "encoder.pos_embedding": "pos_embed",
        "encoder.layers.encoder_layer_": "blocks.",
        "encoder.ln": "norm",
        "ln_": "norm",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "heads.head": "head",
    }
    weights = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = tensor
    ours = vit(norm=lambda dim: nn.LayerNorm(dim, eps=1e-6))
    ours.load_state_dict(weights)
    checks.equal(ours(images()), theirs(images()), 1e-5)


@pytest.mark.paper("S207")
def test_without_positions_the_order_of_the_patches_does_not_matter():
    tiles = rearrange(images(), "b c (h p) (w q) -> b (h w) c p q", p=8, q=8)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = rearrange(tiles[:, order], "b (h w) c p q -> b c (h p) (w q)", h=4)
    blind, seeing = vit(positions=False), vit()
    checks.equal(blind(shuffled), blind(images()), 1e-5)
    before, after = (blind.observe(x).steps[-1].x[:, 1:] for x in (images(), shuffled))
    checks.equal(after, before[:, order], 1e-5)
    assert (seeing(shuffled) - seeing(images())).abs().max() > 1e-2


@pytest.mark.paper("S207")
def test_parameters_and_macs_follow_from_the_measures():
    model, d, n, depth, classes = vit(), 24, 16, 3, 10
    block = 12 * d**2 + 13 * d
    around = (8 * 8 * 3 + 1) * d + d + (n + 1) * d + 2 * d + (d + 1) * classes
    assert sum(p.numel() for p in model.parameters()) == depth * block + around
    tokens = n + 1
    macs = n * 8 * 8 * 3 * d + depth * (12 * tokens * d**2 + 2 * tokens**2 * d) + d * classes
    model.last = "full"
    checks.cost_law(macs, model, images(1, 3, 32, 32))


@pytest.mark.paper("S207")
def test_attention_rows_are_probabilities(model):
    for impl in ("plain", "fast"):
        for step in model.set_impl(impl).observe(images()).steps:
            attn = step.evidence.attention()
            assert attn.shape == (2, 3, 16 + model.prefix, 16 + model.prefix)
            checks.rows_sum_to_one(attn)
            checks.equal(step.evidence.attention(slice(0, 1)), attn[:, :, :1], 1e-6)


# --- plain and fast are the same function --------------------------------------------------------------------
@pytest.mark.paper("S207")
def test_plain_equals_fast(model):
    fast, plain = model, copy.deepcopy(model).set_impl("plain")
    checks.equal(fast(images()), plain(images()), 1e-5)
    checks.equal_gradients(fast, plain, images(), 1e-5)
    for p, q in zip(*(_gradients(m) for m in (fast, plain)), strict=True):
        checks.equal(p, q, 2e-5 * (1 + q.abs().max().item()))


@pytest.mark.paper("S207")
@pytest.mark.parametrize("shape", [(2, 1, 1, 9), (2, 1, 9, 9), (2, 3, 9, 9)])
@pytest.mark.parametrize("rows", [None, 2])
def test_plain_equals_fast_under_a_bias(shape, rows):
    attention = scrambled(Attention(24, 3))
    x, bias = torch.randn(2, 9, 24), torch.randn(shape, requires_grad=True)
    results = []
    for impl in ("plain", "fast"):
        attention.impl, bias.grad = impl, None
        out, evidence = attention.attend(x, bias, rows)
        out.square().sum().backward()
        results.append((out, evidence.attention(), bias.grad))
    checks.equal(results[0][:2], results[1][:2], 1e-5)
    checks.equal(results[0][2], results[1][2], 1e-5 * results[0][2].abs().max().item())
    attention.impl = "fast"
    checks.equal(results[1][0], attention.attend(x, bias)[0][:, :rows], 1e-5)
    assert (results[1][0] - attention.attend(x)[0][:, :rows]).abs().max() > 1e-2


def test_the_choice_reaches_every_attention():
    model = vit(pool=AttentionPool(24, 3)).set_impl("plain")
    assert {m.impl for m in model.modules() if hasattr(m, "impl")} == {"plain"}
    assert model.attn_pool.attend(torch.randn(2, 5, 24))[1].attn is not None


# --- only the rows that are read -----------------------------------------------------------------------------
@pytest.mark.parametrize("name, rows", [("class", 1), ("registers", 1), ("distilled", 2)])
def test_the_last_block_computes_only_the_rows_that_are_read(name, rows):
    short, full = vit(**POOLS[name]), vit(**POOLS[name])
    full.last = "full"
    assert short.features(images()).shape[1] == rows and full.features(images()).shape[1] > 16
    checks.equal(short(images()), full(images()), 2e-6)
    for p, q in zip(*(_gradients(m) for m in (short, full)), strict=True):
        checks.equal(p, q, 2e-6 * (1 + q.abs().max().item()))


def test_the_last_block_may_stand_earlier_too():
    short, full = vit(), vit()
    for model in (short, full):
        model.blocks[0] = model.blocks[2]
    full.last = "full"
    checks.equal(short(images()), full(images()), 2e-6)


def test_no_shortcut_where_it_would_not_be_exact_or_where_somebody_looks():
    assert vit(pool="avg").features(images()).shape[1] == 16
    assert vit().train().features(images()).shape[1] == 17
    assert vit().set_impl("plain").features(images()).shape[1] == 17
    assert vit().observe(images()).steps[-1].x.shape[1] == 17


def test_observe_is_the_forward_pass(model):
    seen = model.observe(images())
    checks.equal(seen.logits, model(images()), 2e-6)
    assert seen.grid == (4, 4) and len(seen.steps) == 3
    checks.equal(seen.embedded, model.embed(images())[0])
    x = seen.embedded
    for block, step in zip(model.blocks, seen.steps, strict=True):
        x = block(x, seen.grid).x
        checks.equal(step.x, x)
        assert step.map is None and step.sizes is None


# --- images of other sizes -----------------------------------------------------------------------------------
@pytest.mark.parametrize("h, w", [(32, 32), (48, 48), (16, 64), (56, 24)])
def test_other_sizes(model, h, w):
    assert model(images(2, 3, h, w)).shape == (2, 10)
    assert model.observe(images(2, 3, h, w)).grid == (h // 8, w // 8)


def test_resampled_positions():
    positions = torch.randn(1, 2 + 12, 5)
    checks.equal(resample_positions(positions, (3, 4), (3, 4), prefix=2), positions)
    other = resample_positions(positions, (3, 4), (6, 2), prefix=2)
    assert other.shape == (1, 2 + 12, 5)  # the same count on another grid is still another grid
    checks.equal(other[:, :2], positions[:, :2])
    assert (other[:, 2:] - positions[:, 2:]).abs().max() > 0.1
    flat = torch.ones(1, 12, 5) * torch.arange(5)
    checks.equal(resample_positions(flat, (3, 4), (7, 5)), torch.ones(1, 35, 5) * torch.arange(5), 1e-5)


def test_an_image_that_is_not_square():
    model = vit(image_size=(16, 48), patch_size=(8, 12))
    assert model.grid == (2, 4) and model(images(2, 3, 16, 48)).shape == (2, 10)


# --- good manners --------------------------------------------------------------------------------------------
def test_manners(model):
    checks.follows_dtype_and_device(model, images())
    checks.batch_independent(model, images())
    checks.deterministic(model, images())
    checks.gradients_flow(model, images())


def test_start_values():
    torch.manual_seed(0)
    model = ViT(**SMALL, layer_scale=1e-5)
    assert model.head.bias.eq(0).all() and 0.015 < model.blocks[0].attn.qkv.weight.std() < 0.025
    assert isinstance(model.blocks[0].ls1, LayerScale) and model.blocks[0].ls1.gamma.eq(1e-5).all()
    x, grid = model.embed(images())
    assert (model.blocks[0](x, grid).x - x).abs().max() < 1e-4  # a deep stack begins as the identity


# --- what is plugged in --------------------------------------------------------------------------------------
class DropHalf:
    """Keep the tokens before the patches and every other patch."""

    def reduce(self, x, evidence, sizes, prefix):
        checks.rows_sum_to_one(evidence.attention())
        keep = torch.tensor([*range(prefix), *range(prefix, x.shape[1], 2)])
        chosen = F.one_hot(keep, x.shape[1]).to(x).expand(len(x), -1, -1)
        return chosen @ x, chosen


class MergePairs:
    """Average each patch with its neighbour."""

    def reduce(self, x, evidence, sizes, prefix):
        patches = (x.shape[1] - prefix) // 2
        pairs = torch.kron(torch.eye(patches), torch.tensor([[0.5, 0.5]]))
        merge = torch.block_diag(torch.eye(prefix), pairs).expand(len(x), -1, -1)
        return merge @ x, merge


def test_merging_equal_tokens_changes_nothing():
    """Exact because a token that stands for s patches is attended to s times."""
    tiles = rearrange(images(2, 3, 32, 16), "b c h (w p) -> b c h w p", p=8)
    twins = rearrange(torch.stack([tiles, tiles], dim=4), "b c h w two p -> b c h (w two p)")
    plain, merging = vit(positions=False), vit(positions=False)
    merging.blocks[0].reducer = MergePairs()
    seen = merging.observe(twins)
    for step in seen.steps:
        checks.equal(step.sizes, torch.tensor([1.0] + [2.0] * 8).expand(2, 9))
    for impl in ("plain", "fast"):
        checks.equal(merging.set_impl(impl)(twins), plain(twins), 1e-5)


class Nothing(nn.Module):
    """A mixer that mixes nothing."""

    def forward(self, x, grid):
        assert grid == (4, 4) and x.shape[1] == 17
        return x


def test_any_mixer_stands_in_a_block():
    model = vit()
    model.blocks[1] = scrambled(Block(24, 3, mixer=Nothing()))
    model.blocks[2] = block = scrambled(Block(24, 3, mixer=Nothing()))
    seen = model.observe(images())
    assert [step.evidence is None for step in seen.steps] == [False, True, True]
    x = seen.steps[1].x
    x = x + block.norm1(x)
    checks.equal(seen.steps[2].x, x + block.mlp(block.norm2(x)), 1e-6)
    checks.equal(model(images()), seen.logits, 2e-6)


@pytest.mark.paper("S182")
def test_layer_scale():
    scale = scrambled(LayerScale(24))
    x = torch.randn(2, 5, 24)
    checks.equal(scale(x), x @ torch.diag(scale.gamma), 1e-6)
    block = Block(24, 3, layer_scale=0.0)
    checks.equal(block(x, (1, 5)).x, x)
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x, (1, 5)).x, x[:1])
    checks.equal(jacobian.reshape(120, 120), torch.eye(120))


def test_attention_pooling():
    plain, fast = (scrambled(AttentionPool(24, 3, impl=impl)) for impl in ("plain", "fast"))
    x = torch.randn(2, 9, 24)
    checks.equal(plain(x), fast(x), 1e-5)
    checks.equal_gradients(plain, fast, x)
    checks.permutation_invariant(fast, x)
    pooled, evidence = fast.attend(x)
    attn = evidence.attention()
    assert attn.shape == (2, 3, 1, 9)
    checks.rows_sum_to_one(attn)
    values = rearrange(fast.kv(x)[..., 24:], "b n (h d) -> b h n d", h=3)
    read = fast.proj(rearrange(attn @ values, "b h 1 d -> b (h d)"))
    checks.equal(pooled, read + fast.mlp(fast.norm(read)), 1e-5)


# --- bad input -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "size, sentence",
    [
        ((2, 3, 30, 32), "image size 30x32 is not divisible by the patch size 8x8; resize or pad it"),
        ((2, 1, 32, 32), r"shape \(2, 1, 32, 32\); expected \(batch, 3, height, width\)"),
        ((3, 32, 32), r"shape \(3, 32, 32\); expected \(batch, 3, height, width\)"),
    ],
)
def test_images_that_do_not_fit(size, sentence):
    with pytest.raises(LabkitError, match=sentence):
        vit()(images(*size))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"heads": 5}, "Width 24 does not divide into 5 heads; choose a multiple of 5"),
        ({"image_size": 30}, "image size 30x30 is not divisible by the patch size 8x8"),
        ({"impl": "quick"}, 'impl=\'quick\' is unknown; choose "plain" or "fast"'),
        ({"pool": "mean"}, 'pool=\'mean\' is unknown; choose "class", "avg" or a module'),
        ({"class_token": False}, 'reads the class token; set class_token=True or pool="avg"'),
        ({"kind": DistilledViT, "pool": "avg"}, "reads its class and its distillation token"),
    ],
)
def test_arguments_that_do_not_fit(options, sentence):
    with pytest.raises(LabkitError, match=sentence):
        vit(**options)


def test_a_reducer_without_attention_and_a_pool_whose_heads_do_not_fit():
    model = vit()
    model.blocks[0] = Block(24, 3, mixer=Nothing())
    model.blocks[0].reducer = DropHalf()
    with pytest.raises(LabkitError, match="reducer needs attention to decide"):
        model(images())
    with pytest.raises(LabkitError, match="Width 24 does not divide into 5 heads"):
        AttentionPool(24, 5)


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    """Of every parameter, under a loss that treats the classes unequally."""
    model.zero_grad()
    (model(images()) * torch.linspace(-1, 1, 10)).sum().backward()
    return [p.grad for p in model.parameters()]
