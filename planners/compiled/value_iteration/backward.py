"""Back through the recorded steps of `vin_forward`: parameter gradients, vector-Jacobian products, the adjoint system.

As there, each loop works on the samples first..last-1 and writes to nothing else.

Legend: B samples, G value channels, A actions, T taps, n cells swept; r reward, u cotangent, w adjoint vector, m
history depth. A plane's border is zero in every cotangent, so flat inner products are those of the maps.
"""

from __future__ import annotations

import numpy as np

from planners.compiled.layout import BLOCK, Floats, as_planes, compiled, fold_borders, from_planes, set_borders
from planners.compiled.linalg import DIVERGED, MAX_STEPS, anderson_weights, growth_limit, inner, norm, relative, verdict
from planners.compiled.simd import LANES
from planners.compiled.value_iteration.step import filter_gradient, greedy_filters, scatter_field, transposed_step


@compiled
def backward(first, last, u, r, filters, grid, record, gradients):  # type: ignore[no-untyped-def]
    """Go back through the recorded steps from the cotangent u [B, G, h, w] of the last one's value.

    Args:
        first: First sample.
        last: One past the last sample.
        u: [B, G, h, w].
        r: As for `forward`.
        filters: `Filters`.
        grid: Layout.
        record: `VIResult` of the forward pass.
        gradients: `VIGradients`, written; that of r is zero before.
    """
    before, greedy, dr = record.before, record.greedy, gradients.r
    n = grid.blocks * BLOCK
    field = filters.r.shape[2] == 0
    tapped = np.empty((filters.v.shape[0], max(filters.r.shape[2], filters.v.shape[2]), n), np.float32)
    runs_r, runs_v = _runs(filters.r, filters.r_size), _runs(filters.v, filters.v_size)
    for b in range(first, last):
        cotangent = as_planes(u[b], grid)
        reward = as_planes(r[b, : 0 if field else r.shape[1]], grid)
        set_borders(reward, grid)
        d_reward = np.zeros_like(reward)
        runs_r[:] = 0
        runs_v[:] = 0
        for k in range(before.shape[1] - 1, -1, -1):
            if field:
                scatter_field(cotangent, greedy[b, k], filters.v.shape[1], grid, dr[b])
            else:
                filter_gradient(cotangent, greedy[b, k], reward, filters.r_size, filters.r_offsets, grid, runs_r)
                jacobian = tapped[:, : filters.r.shape[2]]
                greedy_filters(greedy[b, k], filters.r, jacobian)
                transposed_step(cotangent, jacobian, filters.r_offsets, grid, d_reward)
            filter_gradient(cotangent, greedy[b, k], before[b, k], filters.v_size, filters.v_offsets, grid, runs_v)
            jacobian = tapped[:, : filters.v.shape[2]]
            greedy_filters(greedy[b, k], filters.v, jacobian)
            d_value = np.zeros_like(cotangent)
            transposed_step(cotangent, jacobian, filters.v_offsets, grid, d_value)
            fold_borders(d_value, grid)
            cotangent = d_value
        if not field:
            fold_borders(d_reward, grid)
            from_planes(d_reward, dr[b], grid)
        from_planes(cotangent, gradients.v0[b], grid)
        gradients.w_r[b] = runs_r[:, :, :, : filters.r_size].copy().ravel()
        gradients.w_v[b] = runs_v[:, :, :, : filters.v_size].copy().ravel()


@compiled
def _runs(w: Floats, size: int) -> Floats:
    return np.empty((w.shape[0], w.shape[1], w.shape[2] // size, LANES), np.float32)


@compiled
def linearise(first, last, greedy, w, jacobian):  # type: ignore[no-untyped-def]
    """Write the greedy action's filter of each cell: jacobian [B, G, T, n] from greedy [B, 1, G x n]."""
    for b in range(first, last):
        greedy_filters(greedy[b, 0], w, jacobian[b])


@compiled
def transposed(first, last, u, jacobian, offsets, grid, out):  # type: ignore[no-untyped-def]
    """Write J^T u, [B, G, h, w]."""
    for b in range(first, last):
        image = np.zeros(u.shape[1] * grid.length, np.float32)
        transposed_step(as_planes(u[b], grid), jacobian[b], offsets, grid, image)
        fold_borders(image, grid)
        from_planes(image, out[b], grid)


@compiled
def anderson(first, last, g, greedy, filters, grid, options, out):  # type: ignore[no-untyped-def]
    """Solve w = J^T w + g for each sample: `planners.fixed_points.solvers.Anderson` from w = g, in compiled form.

    Args:
        first: First sample.
        last: One past the last sample.
        g: [B, G, h, w] right-hand side.
        greedy: [B, 1, G x n] greedy actions, which make J.
        filters: `Filters`.
        grid: Layout.
        options: `Options`; max_steps counts vector-Jacobian products.
        out: w [B, G, h, w], residual [B], steps [B], result [B], written.
    """
    mixing, depth = np.float32(options.mixing), options.depth
    jacobian = np.empty((filters.v.shape[0], filters.v.shape[2], grid.blocks * BLOCK), np.float32)
    for b in range(first, last):
        greedy_filters(greedy[b, 0], filters.v, jacobian)
        right = as_planes(g[b], grid)
        w, best, lowest = right.copy(), right.copy(), np.float32(np.inf)
        dw, dc = np.zeros((depth, len(w)), np.float32), np.zeros((depth, len(w)), np.float32)
        w_old, c_old = w, w
        gram, against = np.zeros((depth, depth)), np.zeros(depth)
        limit, result, k = np.float32(0), MAX_STEPS, 0
        while k < options.max_steps:
            image = np.zeros_like(w)
            transposed_step(w, jacobian, filters.v_offsets, grid, image)
            fold_borders(image, grid)
            image += right
            change = image - w
            size = norm(image)
            now = relative(norm(change), size)
            limit = growth_limit(norm(w), size) if k == 0 else limit
            k += 1
            result = verdict(now, size, limit, options.tolerance)
            if result != DIVERGED and now < lowest:
                best, lowest = w, now
            if result != MAX_STEPS or k == options.max_steps:
                break
            step = mixing * change
            if k > 1:
                slot = (k - 2) % depth
                dw[slot], dc[slot] = w - w_old, change - c_old
                for i in range(depth):
                    gram[slot, i] = gram[i, slot] = inner(dc[i], dc[slot])
                    against[i] = inner(dc[i], change)
                gamma = anderson_weights(gram, against, options.weight)
                for i in range(depth):
                    step -= np.float32(gamma[i]) * (dw[i] + mixing * dc[i])
            w_old, c_old = w, change
            w = w + step
        from_planes(best, out[0][b], grid)
        out[1][b], out[2][b], out[3][b] = lowest, k, result
