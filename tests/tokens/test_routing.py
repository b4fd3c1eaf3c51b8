"""Token routing: every way open is the plain block, a shut way costs nothing, and what is paid follows the law."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import labkit
from labkit.cost import count
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError
from labkit.operations import operations
from labkit.tokens import Keep, attach
from labkit.tokens.adaptive import KeepShare
from labkit.tokens.routing import Routed, RoutedBlock, TokenRouter, budget_loss, route, routing_loss
from labkit.train import Recipe, train
from labkit.vit import Attention, Block, ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
BATCH = ImageSet(IMAGES, torch.tensor([0, 3, 1]))


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs))


def routed(plain: ViT, layers=range(3)) -> ViT:
    """Routers that open about half of the gates, token by token."""
    slim = route(plain, layers)
    draw = torch.Generator().manual_seed(2)
    for layer in layers:
        linear = slim.blocks[layer].router.linear
        linear.weight.data.copy_(0.2 * torch.randn(linear.weight.shape, generator=draw))
        linear.bias.data.copy_(torch.tensor([0.1, -0.1]))
    return slim


def gates_of(slim: ViT, images: torch.Tensor) -> list[torch.Tensor]:
    return [step.evidence.gates for step in slim.observe(images).steps if isinstance(step.evidence, Routed)]


@pytest.mark.paper("S391")
@pytest.mark.parametrize("impl", ["plain", "fast"])
@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg"}, {"layer_scale": 0.5}], ids=str)
def test_all_gates_one_is_the_dense_block(kwargs, impl):
    plain = model(**kwargs).set_impl(impl)
    slim = route(plain, range(3), TokenRouter(32, opening=25.0).double())
    assert all((gates == 1).all() for gates in gates_of(slim, IMAGES))
    checks.exact_limit(slim, plain, IMAGES, tol=1e-12)
    x, grid = plain.embed(IMAGES)
    checks.exact_limit(lambda x: slim.blocks[1](x, grid).x, lambda x: plain.blocks[1](x, grid).x, x, tol=1e-12)


def test_the_paths_are_the_block_by_hand():
    """Skip, MLP, attention, both; the router has something to say to each patch and nothing to the prefix."""
    plain = model(registers=1, layer_scale=0.5)
    slim = routed(plain)
    x, grid = plain.embed(IMAGES)
    for old, new in zip(plain.blocks, slim.blocks, strict=True):
        linear = new.router.linear
        told = F.layer_norm(x, (32,)) @ linear.weight.T + linear.bias
        gates = told.tanh().clamp(min=0)
        gates[:, :2] = 1
        step = new(x, grid, None, 2)
        checks.equal(step.evidence.gates, gates, 1e-12)
        y = x + gates[..., :1] * old.ls1(old.attn(old.norm1(x)))
        x = y + gates[..., 1:] * old.ls2(old.mlp(old.norm2(y)))
        checks.equal(step.x, x, 1e-12)
    kinds = (gates[:, 2:] > 0).double() @ torch.tensor([1.0, 2.0]).double()
    assert kinds.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.paper("S391")
@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_a_token_whose_gates_are_shut_is_bit_identical(impl):
    slim = routed(model().set_impl(impl))
    x, grid = slim.embed(IMAGES)
    for block in slim.blocks:
        step = block(x, grid, None, 1)
        shut = ~step.evidence.gates.any(dim=-1)
        assert 3 < shut.sum() < 30
        assert step.x[shut].equal(x[shut]) and not (step.x[~shut] == x[~shut]).all(dim=-1).any()
        x = step.x


@pytest.mark.paper("S391")
@pytest.mark.parametrize("kwargs", [{}, {"pool": "avg"}, {"registers": 1, "layer_scale": 0.5}], ids=str)
def test_gathered_is_dense_masked_with_its_gradients(kwargs):
    """In training, too: a gate that is shut sends no gradient, so that nothing has to be computed for it."""
    fast, slow = routed(model(**kwargs)), routed(model(**kwargs).set_impl("plain"))
    checks.equal(fast(IMAGES), slow(IMAGES), 1e-12)
    for one, other in zip(fast.observe(IMAGES).steps, slow.observe(IMAGES).steps, strict=True):
        checks.equal([one.x, one.evidence.attention()], [other.x, other.evidence.attention()], 1e-12)
        checks.equal([one.evidence.k, one.evidence.v], [other.evidence.k, other.evidence.v], 1e-12)
    checks.equal_gradients(fast.train(), slow.train(), IMAGES, 1e-12)
    checks.equal(fast.train()(IMAGES), fast.eval()(IMAGES), 1e-12)
    for net in (fast.train(), slow.train()):
        routing_loss(0.3)(net, BATCH)[0].backward()
    grads = [{name: p.grad for name, p in net.named_parameters()} for net in (fast, slow)]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        checks.equal(grad, grads[1][name], 1e-10, name)


def test_gathered_attention_knows_norms_of_queries_and_projections_without_bias():
    plain = model()
    for block in plain.blocks:
        block.attn.q_norm, block.attn.k_norm = (randomized(torch.nn.LayerNorm(16)) for _ in range(2))
        block.attn.norm, block.attn.qkv.bias = randomized(torch.nn.LayerNorm(32)), None
    slim = routed(plain)
    checks.equal(slim(IMAGES), slim.set_impl("plain")(IMAGES), 1e-12)


@pytest.mark.paper("S391")
def test_executed_macs_are_those_of_the_open_gates():
    """The catalogue says sum(gate · cost). A gate of 0.3 costs what a gate of 1 costs, so it is the sum over open
    gates; and keys and values of all tokens, 2 n d² a block, are paid by nobody's gate: others ask the shut ones."""
    slim, black, d, n = routed(model()), torch.zeros(1, 3, 32, 32).double(), 32, 17
    slim.last = "full"
    patching, head, router = 16 * d * 3 * 64, 5 * d, 16 * d * 2
    opened = [gates > 0 for gates in gates_of(slim, black)]
    assert all(1 < gates[..., path].sum() < 17 for gates in opened for path in (0, 1))
    paid = sum((gates * torch.tensor(slim.blocks[0].costs(n))).sum().item() for gates in opened)
    assert slim.blocks[0].costs(n) == (2 * d * d + 2 * n * d, 8 * d * d)
    assert count(slim, 32).macs == patching + head + 3 * (router + 2 * n * d * d) + paid
    dense = patching + head + 3 * (router + 2 * n * d * d + n * sum(slim.blocks[0].costs(n)))
    assert count(slim.set_impl("plain"), 32).macs == dense
    slim.set_impl("fast").last = "class"  # then one row is asked for in the last block, and no router
    saved = (opened[2] * torch.tensor(slim.blocks[0].costs(n)))[:, 1:].sum().item()
    assert count(slim, 32).macs == patching + head + 2 * router + 3 * 2 * n * d * d + paid - saved


@pytest.mark.paper("S391")
def test_in_a_batch_only_the_scores_have_rows_that_nobody_asked_for():
    slim, d, n = routed(model(), [0]), 32, 17
    opened = gates_of(slim, IMAGES)[0] > 0
    ask, work = opened.sum(dim=1).unbind(-1)
    assert len(set(ask.tolist())) > 1
    macs = {part: 0 for part in ("qkv", "attention", "proj", "mlp")}
    for seen in operations(slim.blocks[0], slim.embed(IMAGES)[0], (4, 4), None, 1):
        macs[seen.part] = macs.get(seen.part, 0) + seen.macs
    a, m = int(ask.sum()), int(work.sum())
    pairs = 3 * int(ask.max()) * n
    law = {"qkv": (a + 3 * 2 * n) * d * d, "attention": 2 * pairs * d, "proj": a * d * d, "mlp": m * 8 * d * d}
    assert {part: macs[part] for part in law} == law


@pytest.mark.paper("S391")
def test_where_all_is_shut_nothing_is_computed_not_even_keys():
    slim = route(model(pool="avg"), [1], TokenRouter(32, opening=-1.0).double())
    x, grid = slim.embed(IMAGES)
    step = slim.blocks[1](x, grid)
    assert step.x.equal(x) and step.evidence.attention().equal(torch.eye(16).double().expand(3, 2, 16, 16))
    assert sum(seen.macs for seen in operations(slim.blocks[1], x, grid)) == 3 * 16 * 32 * 2  # the router's


@pytest.mark.paper("S391")
def test_soft_gates_learn_wherever_they_are_open_and_only_there():
    router = TokenRouter(8).double()
    checks.equal(router(normal(2, 3, 8)), torch.full((2, 3, 2), 2.0).double().tanh())
    router.linear.weight.data.copy_(normal(2, 8))
    router.linear.bias.data.zero_()
    told = []
    router.linear.register_forward_hook(lambda *args: told.append(args[-1]))
    gates = router(normal(1, 60, 8))
    slope = torch.autograd.grad(gates.sum(), told[0])[0]
    assert 40 < (gates > 0).sum() < 80 and gates.min() == 0 and gates.max() < 1
    assert ((slope > 0) == (gates > 0)).all()
    checks.equal(slope, (1 - gates.square()) * (gates > 0), 1e-12)


@pytest.mark.paper("S391")
def test_budget_loss_is_zero_at_its_target_and_pulls_towards_it_elsewhere():
    cost = torch.tensor([3.0, 1.0]).double()
    gates = torch.tensor([[0.5, 0.0], [0.2, 0.9], [0.0, 0.0], [0.0, 1.0]]).double().requires_grad_(True)
    spent = (2 * 3 + 2 * 1) / (4 * 4)
    loss = budget_loss(gates, cost, spent)
    assert loss == 0 and not torch.autograd.grad(loss, gates)[0].any()
    for target, sign in ((0.2, 1), (0.9, -1)):
        loss = budget_loss(gates, cost, target)
        checks.equal(loss, (cost.new_tensor(spent) - target) ** 2, 1e-12)
        grad = torch.autograd.grad(loss, gates)[0]
        checks.equal(grad, (2 * (spent - target) * cost / 16).expand(4, 2), 1e-12)
        assert (grad.sign() == sign).all()
    checks.equal(budget_loss(gates, cost.expand(4, 2), 0.2), budget_loss(gates, [3, 1], 0.2), 1e-12)
    assert budget_loss(torch.ones(2, 5, 2), cost, 1.0) == 0 and budget_loss(torch.zeros(2, 5, 2), cost, 0.0) == 0


@pytest.mark.paper("S391")
def test_one_router_for_all_blocks_stops_a_token_early():
    """A token that was left as it was gets the same answer from then on, to the bit; with routers apart it does not."""
    router = TokenRouter(32).double()
    router.linear.weight.data.copy_(0.2 * normal(2, 32))
    router.linear.bias.data.fill_(0.2)
    plain = randomized(ViT(32, 8, 5, dim=32, depth=6, heads=2))
    slim = route(plain, range(6), router)
    stopped = [~gates.any(dim=-1) for gates in gates_of(slim, IMAGES)]
    assert all((later | ~sooner).all() for sooner, later in pairwise(stopped))
    assert 0 < stopped[0].sum() <= stopped[-1].sum() < 48
    x = [step.x[stopped[0]] for step in slim.observe(IMAGES).steps]
    assert all(later.equal(x[0]) for later in x)
    apart = [~gates.any(dim=-1) for gates in gates_of(routed(plain, range(6)), IMAGES)]
    assert (apart[0] & ~apart[1]).any()
    assert len(list(slim.parameters())) == len(list(plain.parameters())) + 2


def test_the_copy_shares_its_weights_and_the_routers_are_its_own():
    plain = model()
    before = plain(IMAGES)
    slim = routed(plain, [0, 2])
    own = {id(p) for p in plain.parameters()}
    assert len([p for p in slim.parameters() if id(p) not in own]) == 4 and own <= {id(p) for p in slim.parameters()}
    assert not any(isinstance(block, RoutedBlock) for block in plain.blocks)
    assert [isinstance(block, RoutedBlock) for block in slim.blocks] == [True, False, True]
    checks.equal(plain(IMAGES), before)
    assert (slim(IMAGES) - before).abs().max() > 1e-2
    assert set(plain.state_dict()) < set(slim.state_dict())
    checks.equal(copy.deepcopy(slim)(IMAGES), slim(IMAGES))


def test_training_meets_the_budget():
    torch.manual_seed(0)
    slim = routed(model(), range(2)).float()
    batch = ImageSet(torch.rand(8, 3, 32, 32), torch.arange(8) % 5)
    train(slim, lambda *_: batch, Recipe(steps=60, lr=3e-3), loss=routing_loss(0.2, 10.0))
    gates = torch.stack(gates_of(slim, batch.images))[:, :, 1:]
    assert budget_loss(gates, slim.blocks[0].costs(17), 0.2) < 0.05**2
    assert gates.std() > 0.05


def test_attention_of_those_who_did_not_ask_is_their_own():
    slim = routed(model())
    for step in slim.observe(IMAGES).steps:
        attn, asked = step.evidence.attention(), step.evidence.gates[..., 0] > 0
        checks.rows_sum_to_one(attn, 1e-12)
        own = attn.diagonal(dim1=2, dim2=3)
        assert (own.transpose(1, 2)[~asked] == 1).all() and (own.transpose(1, 2)[asked] < 1).all()
        checks.equal(step.evidence.attention(slice(2, 7)), attn[:, :, 2:7], 1e-12)
    traced = labkit.trace(slim, IMAGES)
    checks.equal(traced.attention[2], attn, 1e-6)


def test_tokens_that_are_gone_take_no_path():
    """Images of different lengths in a batch: routed together as alone."""
    slim = attach(routed(model(), [1, 2]), KeepShare(0.6), [0])
    steps = slim.observe(IMAGES).steps
    assert (steps[0].sizes == 0).any() and not steps[1].evidence.gates[steps[0].sizes == 0].any()
    checks.batch_independent(slim, IMAGES, 1e-12)
    checks.equal(slim(IMAGES), slim.set_impl("plain")(IMAGES), 1e-12)


def test_gradients_precisions_and_order():
    slim = routed(model())
    checks.gradients_flow(routed(model(), range(2)).train(), IMAGES)
    checks.follows_dtype_and_device(slim.eval(), IMAGES)
    checks.batch_independent(slim, IMAGES, 1e-12)
    order = torch.tensor([2, 0, 1])
    checks.equal(slim(IMAGES[order]), slim(IMAGES)[order], 1e-12)
    single = copy.deepcopy(slim).float()
    checks.equal(single(IMAGES.float()), single.set_impl("plain")(IMAGES.float()), 1e-5)


def test_what_cannot_be_routed_is_refused():
    plain = model()
    with pytest.raises(LabkitError, match="A block is routed if it has softmax attention"):
        route(attach(plain, Keep(0.5), [1]), [1])
    with pytest.raises(LabkitError, match="no token reducer; choose other layers"):
        attach(route(plain, [1]), Keep(0.5), [1])(IMAGES)
    mixed = model()
    mixed.blocks[0] = Block(32, 2, mixer=torch.nn.Identity()).double()
    with pytest.raises(LabkitError, match="A block is routed if it has softmax attention"):
        route(mixed, [0])
    attn = model().blocks[0].attn
    assert isinstance(attn, Attention)
    with pytest.raises(LabkitError, match=r"opens 3 paths for tokens of width 16.*TokenRouter\(32\)"):
        route(plain, [0], TokenRouter(16, 3))
    with pytest.raises(LabkitError, match=r"target=1\.5 is not a share"):
        routing_loss(1.5)(route(plain, [0]), BATCH)
    with pytest.raises(LabkitError, match=r"No block of this model is routed; .* tokens\.route"):
        routing_loss(0.5)(plain, BATCH)
