"""ConvGPPN and SPT against textbook forms of their steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from planners import PlannerSpec
from planners.cores.conv_gppn import ConvGPPN
from planners.cores.layers import convolve, merged, same_conv
from planners.cores.spt import SPT, positions
from planners.options import ConvGPPNOptions, SPTOptions


@pytest.mark.parametrize("wrap", [False, True])
def test_conv_gppn_is_the_conv_gru_of_reward_and_state_side_by_side(wrap):
    torch.manual_seed(0)
    core = ConvGPPN(ConvGPPNOptions(hidden_channels=3, q_channels=4), wrap=wrap).double()
    x = torch.rand(2, 2, 5, 6, dtype=torch.float64)
    r = core.reward(core.hidden(x))
    v = torch.randn(2, 4, 5, 6, dtype=torch.float64)

    def conv(channels, weight, bias):
        padded = F.pad(torch.cat(channels, 1), (1, 1, 1, 1), mode="circular" if wrap else "constant")
        return F.conv2d(padded, weight, bias)

    gates_r, candidate_r = core.from_reward.weight.split((8, 4))
    gates_b, candidate_b = core.from_reward.bias.split((8, 4))
    gates = conv([r, v], torch.cat([gates_r, core.gates], 1), gates_b).sigmoid()
    update, reset = gates.chunk(2, 1)
    new = conv([r, reset * v], torch.cat([candidate_r, core.candidate], 1), candidate_b).tanh()
    step = core.encode(x)
    torch.testing.assert_close(step(v), (1 - update) * v + update * new)
    torch.testing.assert_close(step.initial_value(), core.initial(r))


def test_the_papers_and_the_authors_size():
    assert ConvGPPN(ConvGPPNOptions(), wrap=False).candidate.shape == (40, 40, 3, 3)
    assert ConvGPPN(ConvGPPNOptions(q_channels=150), wrap=False).candidate.shape == (150, 150, 3, 3)


@pytest.mark.parametrize("wrap", [False, True])
def test_merged_layers_are_the_two_layers(wrap):
    torch.manual_seed(0)
    first, second = same_conv(2, 6, 3, wrap=wrap), torch.nn.Conv2d(6, 3, 1, bias=False)
    x = torch.rand(2, 2, 5, 4)
    merged_output = convolve(x, *merged(first.weight, first.bias, second.weight), wrap=wrap)
    torch.testing.assert_close(merged_output, second(first(x)))


@pytest.mark.parametrize("layers", [1, 2])
def test_spt_is_torchs_transformer_encoder(layers):
    torch.manual_seed(0)
    core = SPT(SPTOptions(embedding=8, heads=2, feedforward=12, layers=layers), wrap=False)
    reference = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), layers, enable_nested_tensor=False
    )
    with torch.no_grad():
        for ours, theirs in zip(core.layers, reference.layers, strict=True):
            theirs.self_attn.in_proj_weight.copy_(ours.project.weight)
            theirs.self_attn.in_proj_bias.copy_(ours.project.bias)
            theirs.self_attn.out_proj.load_state_dict(ours.merge.state_dict())
            theirs.linear1.load_state_dict(ours.feedforward[0].state_dict())
            theirs.linear2.load_state_dict(ours.feedforward[2].state_dict())
    v = torch.randn(2, 8, 3, 4)
    expected = reference.train()(v.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(v.shape)
    torch.testing.assert_close(core.step(v, core.encode(torch.rand(2, 2, 3, 4))), expected, rtol=1e-5, atol=1e-5)


def test_spt_injects_its_map_only_when_told_to():
    torch.manual_seed(0)
    x, v = torch.rand(2, 1, 2, 3, 4), torch.randn(1, 8, 3, 4)
    for inject in (False, True):
        core = SPT(SPTOptions(embedding=8, heads=2, feedforward=12, inject_map=inject), wrap=False)
        first, second = (core.step(v, core.encode(each)) for each in x)
        assert torch.equal(first, second) is not inject


def test_positions_tell_every_cell_apart():
    encoded = positions(torch.zeros(1, 8, 6, 5)).flatten(1).T
    assert len(torch.unique(encoded, dim=0)) == 30


def test_heads_must_divide_the_embedding():
    with pytest.raises(ValueError, match="heads must divide embedding"):
        PlannerSpec(core="spt", embedding=8, heads=3)
