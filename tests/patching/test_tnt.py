"""Words inside patches: timm's TNT, no word hears another patch, and without the lift it is the plain ViT."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from labkit.cost import block_macs, count
from labkit.errors import LabkitError
from labkit.patching.patches import cut, uncut
from labkit.patching.tnt import TNT, TNTBlock, WordEmbed
from labkit.tokens import Keep, Merge, attach
from labkit.vit import Block
from tests import checks
from tests.weights import normal, randomized

DIM, INNER, WORDS = 16, 4, 4  # a token carries 16 + 4 x 4 numbers


def small(depth: int = 2) -> TNT:
    return randomized(TNT(32, 8, 5, DIM, depth, 2, inner=INNER, inner_heads=2, side=2))


@torch.no_grad()
def silence(lift: nn.Sequential) -> None:
    for parameter in (lift[2].weight, lift[2].bias):
        parameter.zero_()


def from_timm(theirs: nn.Module, ours: TNT) -> TNT:
    """timm's weights under our names: its queries and keys lie in one matrix, its values in another."""
    names = {
        "pixel_embed.proj.": "patch_embed.words.",
        ".norm_in.": ".inner.norm1.",
        ".norm_mlp_in.": ".inner.norm2.",
        ".mlp_in.": ".inner.mlp.",
        ".norm_out.": ".norm1.",
        ".norm_mlp.": ".norm2.",
        ".attn_in.": ".inner.attn.",
        ".attn_out.": ".attn.",
        "norm1_proj.": "lift.0.",
        "norm2_proj.": "lift.2.",
        "patch_pos": "pos_embed",
    }
    weights: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        for theirs_part, ours_part in names.items():
            name = name.replace(theirs_part, ours_part)
        name = name.replace(".proj.", ".lift.1.") if name.startswith("blocks") and "attn" not in name else name
        name = f"patch_embed.{name.replace('proj.', 'lift.1.')}" if name.startswith(("lift", "proj")) else name
        if name == "pixel_pos":
            name, tensor = "patch_embed.place", tensor[0].flatten(1).T
        if name.endswith(".v.weight"):
            name = name.replace(".v.", ".qkv.")
            tensor = torch.cat([weights.pop(name.replace(".qkv.", ".qk.")), tensor])
            weights[name.replace("weight", "bias")] = tensor.new_zeros(len(tensor))
        weights[name] = tensor
    ours.load_state_dict(weights)
    return ours.eval()


@pytest.mark.paper("S065")
def test_copied_weights_give_timms_logits():
    timms = timm.create_model("tnt_s_patch16_224").double().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # gains of one and biases of zero would hide mistakes
        for parameter in timms.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        ours, images = from_timm(timms, TNT().double()), normal(1, 3, 224, 224)
        checks.equal(ours(images), timms(images), 1e-9, "our logits and timm's")
        assert timms(images).std() > 0.1


@pytest.mark.paper("S065")
def test_a_silent_lift_is_the_plain_block():
    block, plain, x = randomized(TNTBlock(DIM, 2, INNER, 2, WORDS)), Block(DIM, 2).double(), normal(2, 7, 32)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith(("inner", "lift"))})
    loud = block(x, (2, 3), prefix=1).x[..., :DIM]
    assert (loud - plain(x[..., :DIM], (2, 3)).x).abs().max() > 0.1
    silence(block.lift)
    checks.exact_limit(lambda x: block(x, (2, 3), prefix=1).x[..., :DIM], lambda x: plain(x[..., :DIM], (2, 3)).x, x)


@pytest.mark.paper("S065")
def test_no_word_hears_another_patch():
    embed, block = randomized(WordEmbed(8, DIM, INNER, 2, 3)), randomized(TNTBlock(DIM, 2, INNER, 2, WORDS))

    block.inner.attn.impl = "plain"  # the fused kernel has no batched backward

    def words(images: Tensor) -> Tensor:
        return block.read(embed(images)[0][..., DIM:])[0].sum(dim=-1)  # (6 patches,)

    jacobian = torch.func.jacrev(words)(normal(1, 3, 16, 24))[:, 0]
    heard = cut(jacobian, 8).abs().amax(dim=-1)  # (patch that hears, patch that is heard)
    assert heard.diagonal().min() > 0
    assert not (heard - heard.diagonal().diag()).any()


@pytest.mark.paper("S065")
def test_cutting_patches_into_words_loses_no_pixel():
    images = normal(2, 3, 16, 24)
    words = cut(uncut(cut(images, 8), 8, (2, 3)).unfold(2, 8, 8).unfold(3, 8, 8).flatten(0, 3)[:, None], 4)
    patches = uncut(words, 4, (2, 2)).view(2, 3, 2, 3, 8, 8)
    checks.equal(patches.permute(0, 1, 2, 4, 3, 5).reshape(images.shape), images)


def test_a_word_of_the_embedding_sees_its_seven_pixels_within_its_patch():
    embed, image = randomized(WordEmbed(8, DIM, INNER, 2, 3)), normal(1, 3, 16, 16).requires_grad_(True)
    embed(image)[0][0, 1, DIM + 3 * INNER :].sum().backward()  # the last word of the second patch
    touched = image.grad.abs().sum(dim=(0, 1)).nonzero()
    assert touched.min(dim=0).values.tolist() == [1, 9] and touched.max(dim=0).values.tolist() == [7, 15]


@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_the_short_cut_of_the_class_row_changes_nothing(impl):
    vit, images = small().set_impl(impl), normal(2, 3, 32, 48)
    fast = vit(images)
    vit.last = "full"
    checks.equal(vit(images), fast, 1e-12, "the logits with and without the short cut")
    checks.equal(vit.observe(images).logits, fast, 1e-12, "the observed logits and the logits")


@pytest.mark.parametrize("reducer", [Keep(0.5), Merge(4)])
def test_a_token_takes_its_words_along(reducer):
    vit, images = small(), normal(2, 3, 32, 32)
    step = attach(vit, reducer, layers=[0]).observe(images).steps[0]
    whole = vit.observe(images).steps[0]
    checks.equal(step.x[..., DIM:], step.map @ whole.x[..., DIM:], 1e-12, "the words that are left and their tokens'")
    assert step.map.shape[1] < step.map.shape[2] and step.x[:, 1:, DIM:].abs().amin() > 0


def test_its_cost():
    vit, n, m = small(), 16, WORDS
    vit.last = "full"
    word = 3 * 7**2 * INNER
    block = sum(block_macs(n + 1, DIM).values()) + n * (sum(block_macs(m, INNER).values()) + m * INNER * DIM)
    assert count(vit, 32).macs == n * (m * word + m * INNER * DIM) + 2 * block + DIM * 5
    assert sum(block_macs(m, INNER).values()) == 12 * m * INNER**2 + 2 * m**2 * INNER


def test_it_is_a_vit_like_the_others():
    vit = TNT(32, 8, 5, DIM, 2, 2, inner=INNER, inner_heads=2, side=2)
    images = normal(2, 3, 32, 48).float()
    assert vit(images).shape == (2, 5)
    checks.gradients_flow(vit, images[..., :32])
    checks.follows_dtype_and_device(vit, images)
    checks.batch_independent(vit, images)
    assert vit.blocks[0].attn.qkv.weight.std() < 0.03


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TNT(32, 8, 5, side=3), "A patch of 8 pixels does not divide into 3 words"),
        (lambda: small()(torch.zeros(1, 3, 20, 32)), "20x32 is not divisible by the patch size 8x8"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
