from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from planners import PlannerSpec, build_planner
from planners.mappers import Panorama, Tiles, UNet, different
from planners.options import PanoramaOptions, TilesOptions, UNetOptions

SMALL = {"hidden_channels": 8, "q_channels": 8}
TINY_UNET = {"channels": (4, 6, 6, 8)}


def views(batch=2, height=3, width=4):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, height, width, 4, 32, 32, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_panorama_has_the_papers_layers():
    torch.manual_seed(0)
    mapper = Panorama(PanoramaOptions(), wrap=False)
    shapes = [tuple(p.shape) for name, p in mapper.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, 3, 8, 8), (64, 32, 4, 4), (256, 256), (64, 1024, 3, 3), (1, 64, 3, 3)]
    assert mapper(views(), (3, 4)).shape == (2, 1, 3, 4)


def test_panorama_takes_views_of_other_sizes():
    mapper = Panorama(PanoramaOptions(views=2, resolution=24), wrap=False)
    assert mapper(torch.zeros(1, 3, 4, 2, 24, 24, 3, dtype=torch.uint8), (3, 4)).shape == (1, 1, 3, 4)
    Panorama(PanoramaOptions(resolution=20), wrap=False)


def test_panorama_sees_each_cell_through_its_own_views():
    """A changed view changes the map around its cell, 5x5 as two 3x3 layers see, and nothing else."""
    torch.manual_seed(0)
    mapper = Panorama(PanoramaOptions(), wrap=False)
    seen = views(1, 7, 8)
    changed = seen.clone()
    changed[0, 1, 5, 2] = 255 - changed[0, 1, 5, 2]
    moved = (mapper(seen, (7, 8)) != mapper(changed, (7, 8)))[0, 0]
    expected = torch.zeros(7, 8, dtype=torch.bool)
    expected[0:4, 3:8] = True
    assert torch.equal(moved, expected)


def test_panorama_embeds_one_view_as_by_hand():
    torch.manual_seed(0)
    mapper = Panorama(PanoramaOptions(), wrap=False)
    seen = views(1, 1, 1)
    embeddings = []
    for view in seen[0, 0, 0]:
        x = view.float().permute(2, 0, 1)[None] / 255
        x = F.conv2d(x, mapper.view[0].weight, mapper.view[0].bias, stride=4).relu()
        x = F.conv2d(x, mapper.view[2].weight, mapper.view[2].bias, stride=2).relu()
        embeddings.append(F.linear(x.flatten(), mapper.view[5].weight, mapper.view[5].bias).relu())
    expected = mapper.map(torch.cat(embeddings)[None, :, None, None])
    torch.testing.assert_close(mapper(seen, (1, 1)), expected)


@pytest.mark.parametrize("size", [(18, 18), (36, 36), (9, 14)])
@pytest.mark.parametrize("wrap", [False, True])
def test_unet_makes_a_map_of_any_size(size, wrap):
    mapper = UNet(UNetOptions(**TINY_UNET), wrap=wrap)
    images = torch.randint(0, 2, (2, 1, 96, 96), dtype=torch.uint8)
    logits = mapper(images, size)
    assert logits.shape == (2, 1, *size)
    assert torch.equal(mapper(images[:, 0], size), logits)


def test_unet_sees_the_whole_workspace_from_every_cell():
    """A joint angle is no place in the image: every pixel may matter to every cell."""
    torch.manual_seed(0)
    mapper = UNet(UNetOptions(), wrap=True)
    image = torch.rand(1, 1, 96, 96, requires_grad=True)
    mapper(image, (18, 18))[0, 0, 0, 0].backward()
    assert image.grad is not None
    seen = image.grad[0, 0] != 0
    corners = [seen[:24, :24], seen[:24, -24:], seen[-24:, :24], seen[-24:, -24:]]
    assert all(corner.any() for corner in corners)


def test_wrong_observations_are_named():
    with pytest.raises(ValueError, match=r"observation: expected \[B, 1, 96, 96\]"):
        UNet(UNetOptions(**TINY_UNET), wrap=False)(torch.zeros(1, 1, 64, 64), (9, 9))
    with pytest.raises(ValueError, match=r"observation: expected \[B, 5, 5, 4, 32, 32, 3\]"):
        Panorama(PanoramaOptions(), wrap=False)(views(), (5, 5))
    with pytest.raises(ValueError, match="channels: expected at least one"):
        UNetOptions(channels=())


@pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
def test_mapper_and_planner_learn_together(adjoint):
    """The loss on the policy reaches the mapper through the solver; the planner sees probabilities."""
    torch.manual_seed(0)
    spec = PlannerSpec(
        core="conv_gppn", options=SMALL, mapper="unet", mapper_options=TINY_UNET, adjoint=adjoint, k_fwd=5, wrap=True
    )
    planner = build_planner(spec)
    goal = torch.zeros(2, 1, 9, 9)
    goal[:, 0, 2, 3] = 1
    images = (torch.rand(2, 1, 96, 96) > 0.5).to(torch.uint8)
    plan = planner.plan(None, goal, images)
    assert plan.map_logits is not None and plan.map_logits.shape == goal.shape
    torch.testing.assert_close(planner.plan(plan.map_logits.sigmoid(), goal).logits, plan.logits)
    plan.logits.square().sum().backward()
    reached = {name for name, p in planner.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name for name, _ in planner.mapper.named_parameters()} <= {name.removeprefix("mapper.") for name in reached}


@pytest.mark.slow
@pytest.mark.parametrize("mapper", ["unet", "panorama"])
def test_a_mapper_learns_a_map_apart(mapper):
    """Pre-training (D.1): binary cross-entropy on the map's logits falls well below that of a coin."""
    torch.manual_seed(0)
    size = (4, 4)
    target = (torch.rand(4, 1, *size) > 0.5).float()
    if mapper == "unet":
        model, seen = UNet(UNetOptions(**TINY_UNET), wrap=True), torch.zeros(4, 1, 96, 96, dtype=torch.uint8)
        for i in range(4):  # an obstacle in each quarter of the workspace
            seen[i, 0, 48 * (i // 2) : 48 * (i // 2) + 40, 48 * (i % 2) : 48 * (i % 2) + 40] = 1
    else:
        model, seen = Panorama(PanoramaOptions(), wrap=False), views(4, *size)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = F.binary_cross_entropy_with_logits(model(seen, size), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.2:
            return
    raise AssertionError(f"loss {loss.item()}")


def test_views_that_are_alike_are_embedded_once_and_change_nothing():
    """Forward to the bit as view by view; gradients within the rounding of another order of sums."""
    torch.manual_seed(0)
    mapper = Panorama(PanoramaOptions(views=2, resolution=20), wrap=False).double()
    few = torch.randint(0, 256, (5, 20, 20, 3), dtype=torch.uint8)
    seen = few[torch.randint(0, 5, (3 * 4 * 5 * 2,))].unflatten(0, (3, 4, 5, 2))
    kept, places = different(seen.flatten(0, 3))
    assert len(kept) == 5 and torch.equal(kept[places], seen.flatten(0, 3))
    logits = mapper(seen, (4, 5))
    one_by_one = mapper.view(seen.flatten(0, 3).permute(0, 3, 1, 2).double().div(255))
    expected = mapper.map(one_by_one.unflatten(0, seen.shape[:4]).flatten(3).permute(0, 3, 1, 2))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-14)
    weights = list(mapper.parameters())
    ours, theirs = (torch.autograd.grad(found.square().sum(), weights) for found in (logits, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_tiles_takes_any_number_of_pixels_a_tile():
    mapper = Tiles(TilesOptions(), wrap=False)
    for pixels in (2, 8, 16):
        image = torch.zeros(2, 3, 5 * pixels, 6 * pixels, dtype=torch.uint8)
        assert mapper(image, (5, 6)).shape == (2, 1, 5, 6)
    with pytest.raises(ValueError, match=r"observation: expected \[B, 3, n \* 5, n \* 6\], n pixels a tile"):
        mapper(torch.zeros(2, 3, 40, 47), (5, 6))
    assert [tuple(p.shape) for p in mapper.parameters()][::2] == [
        (16, 3, 3, 3),
        (32, 16, 3, 3),
        (32, 32, 3, 3),
        (32, 32, 1, 1),
        (1, 32, 1, 1),
    ]


def test_tiles_sees_each_tile_where_it_is():
    torch.manual_seed(0)
    mapper = Tiles(TilesOptions(), wrap=False)
    image = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    changed[..., 16:24, 40:48] = 255 - changed[..., 16:24, 40:48]
    rows, columns = torch.nonzero((mapper(image, (6, 8)) - mapper(changed, (6, 8)))[0, 0].abs() > 1e-6, as_tuple=True)
    assert {(2, 5)} <= set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert {*rows.tolist()} <= {2, 3} and {*columns.tolist()} <= {5, 6}  # strides look up and left
