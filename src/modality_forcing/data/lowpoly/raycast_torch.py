"""The batched ray caster: packets of neighbouring rays against primitives, then triangles, on any device.

1. ``PACKET`` consecutive rays form a packet, bounded by intervals of origins and directions.
2. Interval arithmetic of the slab test keeps the (packet, primitive) pairs that may meet, then the
   (packet, triangle) pairs.
3. What is left is dealt out in blocks: all rays of a packet against ``BLOCK`` candidates. Every ray keeps the
   nearest hit, and of hits at the same distance the triangle of the lowest number.

Coordinates are taken relative to the packet's middle, so that float32 is exact enough far from the world's
origin. Only element-wise arithmetic and minima are used: the answer to a ray does not depend on its batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from modality_forcing.data.lowpoly.geometry import Geometry
from modality_forcing.data.lowpoly.raycast import ray_count
from modality_forcing.data.lowpoly.shading import Vec, pick

PACKET = 64
BLOCK = 8
_NEAR = 1e-6
_TINY = 1e-30


class TorchCaster:
    """A batch of scenes on one device. ``budget`` is the number of ray-triangle tests made at once."""

    def __init__(self, geometry: Geometry, budget: int | None = None) -> None:
        self.device = geometry.device
        # On the CPU a step should stay in the cache; on an accelerator it should fill the machine.
        self.budget = budget or (1 << 16 if self.device.type == "cpu" else 1 << 23)
        a, b, c = (geometry.corners[:, k] for k in range(3))
        e1, e2 = b - a, c - a
        n = np.cross(e1, e2)
        area = (n * n).sum(1, keepdims=True)
        flat = area[:, 0] < 1e-24
        area[flat] = 1.0
        u, v = np.cross(e2, n) / area, np.cross(n, e1) / area
        n = n / np.sqrt(area)
        u[flat] = v[flat] = n[flat] = 0.0
        rows = [*n.T, (n * a).sum(1), *u.T, -(u * a).sum(1), *v.T, -(v * a).sum(1)]
        table = np.stack(rows)
        table[7, flat] = -1.0
        # The last column is a triangle that no ray meets.
        never = np.zeros((12, 1))
        never[7] = -1.0
        self._table = torch.from_numpy(np.concatenate([table, never], 1)).to(self.device)
        self._never = len(a)
        low, high = geometry.corners.min(1), geometry.corners.max(1)
        owner = geometry.owner.cpu().numpy()
        # Triangles of a primitive stand in a row, so a primitive is a run.
        first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        self._low, self._high = self._put(low.T, np.float32), self._put(high.T, np.float32)
        self._part_low = self._put(np.minimum.reduceat(low, first).T, np.float32)
        self._part_high = self._put(np.maximum.reduceat(high, first).T, np.float32)
        ends = np.r_[first[1:], len(owner)]
        self._part_first, self._part_count = self._put(first, np.int64), self._put(ends - first, np.int64)
        runs = np.searchsorted(first, geometry.starts)
        self._run_first, self._run_count = self._put(runs[:-1], np.int64), self._put(np.diff(runs), np.int64)

    def closest(self, origin: Vec, direction: Vec, scene: Tensor | None) -> Tensor:
        """See ``RayCaster``."""
        return self._cast(origin, direction, None, scene)

    def free(self, origin: Vec, direction: Vec, reach: Tensor | None, scene: Tensor | None) -> Tensor:
        """See ``RayCaster``."""
        return self._cast(origin, direction, reach, scene) < 0

    def _put(self, value: np.ndarray, dtype: type) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(value, dtype)).to(self.device)

    def _cast(self, origin: Vec, direction: Vec, reach: Tensor | None, scene: Tensor | None) -> Tensor:
        """The nearest triangle within reach of every ray, int32 (N,), -1 for none."""
        count = ray_count(origin, direction)
        if count == 0:
            return torch.zeros(0, dtype=torch.int32, device=self.device)
        rays, which = self._packets(count, scene)
        o, d = [_spread(x, rays) for x in origin], [_spread(x, rays) for x in direction]
        limit = None if reach is None else _spread(reach, rays)
        packet, triangle = self._candidates(o, d, limit, which)
        # Work is dealt out in blocks of candidates of one packet.
        size = torch.bincount(packet, minlength=len(rays))
        row, number = _expand((size + BLOCK - 1) // BLOCK)
        begin = (size.cumsum(0) - size)[row] + number * BLOCK
        left = size[row] - number * BLOCK
        middle = [0.5 * (x.amin(1) + x.amax(1)) for x in o]
        near = torch.stack([x - m[:, None] for x, m in zip(o, middle, strict=True)] + d)
        centre = torch.stack(middle).double()
        best = torch.full(rays.shape, torch.inf, device=self.device) if limit is None else limit.contiguous()
        best = _key(best, torch.full_like(best, self._never, dtype=torch.int32))
        step = torch.arange(BLOCK, device=self.device)
        share = max(1, self.budget // (BLOCK * PACKET))
        for start in range(0, len(row), share):
            rows = row[start : start + share]
            at = (begin[start : start + share, None] + step).clamp(max=len(triangle) - 1)
            inside = step < left[start : start + share, None]
            index = torch.where(inside, pick(triangle, at.reshape(-1)).reshape(at.shape), self._never)
            constants = self._constants(index, centre[:, rows])
            distance, first = _test(near[:, rows], constants, index.int(), self._never)
            best.scatter_reduce_(0, rows[:, None].expand(-1, PACKET), _key(distance, first), "amin")
        found = (best & 0xFFFFFFFF).int()
        found = torch.where(found == self._never, -1, found)
        # The copies that fill up a packet say the same as the ray itself.
        return torch.empty(count, dtype=torch.int32, device=self.device).scatter_(
            0, rays.reshape(-1), found.reshape(-1)
        )

    def _constants(self, index: Tensor, centre: Tensor) -> Tensor:
        """Float32 (13, A, K, 1): planes and coordinates of triangles (A, K) seen from middles (3, A)."""
        m = torch.index_select(self._table, 1, index.reshape(-1)).reshape(12, *index.shape)
        cx, cy, cz = centre[:, :, None]
        m[3] -= m[0] * cx + m[1] * cy + m[2] * cz
        m[7] += m[4] * cx + m[5] * cy + m[6] * cz
        m[11] += m[8] * cx + m[9] * cy + m[10] * cz
        # Neighbouring triangles overlap by a hair, so that no ray slips between them.
        hair_u, hair_v = 1e-6 + 2e-7 * m[7].abs(), 1e-6 + 2e-7 * m[11].abs()
        m[7] += hair_u
        m[11] += hair_v
        rest = 1 + 2 * (hair_u + hair_v)
        return torch.cat([m, rest[None]]).float()[..., None]

    def _packets(self, count: int, scene: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rays of the packets (packets, PACKET) and the scene of each; none spans two scenes."""
        lane = torch.arange(PACKET, device=self.device)
        if scene is None:
            packets = -(-count // PACKET)
            first = torch.arange(packets, device=self.device) * PACKET
            return (first[:, None] + lane).clamp(max=count - 1), None
        per_scene = torch.bincount(scene, minlength=len(self._run_first))
        ends = per_scene.cumsum(0)
        which, number = _expand((per_scene + PACKET - 1) // PACKET)
        first = (ends - per_scene)[which] + number * PACKET
        return torch.minimum(first[:, None] + lane, ends[which][:, None] - 1), which

    def _candidates(
        self, o: list[Tensor], d: list[Tensor], limit: Tensor | None, which: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(packet, triangle) pairs that may meet, ordered by packet and triangle."""
        bounds = torch.stack([f(x, 1) for x in (*o, *d) for f in (torch.amin, torch.amax)])
        far = torch.full_like(bounds[0], torch.inf) if limit is None else limit.amax(1)
        packets = bounds.shape[1]
        if which is None:
            which = torch.zeros(packets, dtype=torch.int64, device=self.device)
        found = []
        for start, end in self._shares(packets, int(self._run_count.max())):
            row, number = _expand(self._run_count[which[start:end]])
            part = self._run_first[which[start:end]][row] + number
            row = row + start
            keep = self._may_meet(bounds, far, row, self._part_low, self._part_high, part)
            rows, parts = row[keep], part[keep]
            for first, last in self._shares(len(rows), int(self._part_count.max())):
                pair, number = _expand(self._part_count[parts[first:last]])
                row = rows[first:last][pair]
                triangle = self._part_first[parts[first:last]][pair] + number
                keep = self._may_meet(bounds, far, row, self._low, self._high, triangle)
                found.append((row[keep], triangle[keep]))
        if not found:
            return which[:0], which[:0]
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    def _shares(self, count: int, each: int) -> list[tuple[int, int]]:
        """Ranges of ``count`` rows with at most ``each`` entries per row, for the memory we allow."""
        share = max(1, 4 * self.budget // each)
        return [(start, min(start + share, count)) for start in range(0, count, share)]

    def _may_meet(
        self, bounds: Tensor, far: Tensor, row: Tensor, low: Tensor, high: Tensor, box: Tensor
    ) -> Tensor:
        """Indices of the pairs whose packet ``row`` may meet the box ``box``: slab test on intervals."""
        enter = torch.zeros(len(row), device=self.device)
        leave = torch.index_select(far, 0, row)
        for axis in range(3):
            o0, o1, d0, d1 = (
                torch.index_select(bounds[6 * (k // 2) + 2 * axis + k % 2], 0, row) for k in range(4)
            )
            b0, b1 = torch.index_select(low[axis], 0, box), torch.index_select(high[axis], 0, box)
            # A hair of room: the tests behind this one are rounded too.
            room = 1e-5 * (1.0 + b0.abs() + b1.abs())
            above, below = b0 - o1 - room, o0 - b1 - room
            enter = torch.maximum(enter, above / d1.clamp(min=_TINY))
            enter = torch.maximum(enter, below / (-d0).clamp(min=_TINY))
            # The ray has left for good where every direction of the packet leads away.
            ahead, behind = b1 - o0 + room, o1 - b0 + room
            leave = torch.minimum(leave, torch.where(d0 > 0, ahead.clamp(min=0) / d0, torch.inf))
            leave = torch.minimum(leave, torch.where(d1 < 0, behind.clamp(min=0) / -d1, torch.inf))
        return (enter <= leave * (1 + 1e-6)).nonzero()[:, 0]


def _test(near: Tensor, constants: Tensor, index: Tensor, never: int) -> tuple[Tensor, Tensor]:
    """Rays (6, A, P) against triangles (13, A, K, 1): distance and triangle nearest to each ray, (A, P)."""
    ox, oy, oz, dx, dy, dz = near[:, :, None]
    nx, ny, nz, n0, ux, uy, uz, u0, vx, vy, vz, v0, rest = constants
    t = (n0 - (nx * ox + ny * oy + nz * oz)) / (nx * dx + ny * dy + nz * dz)
    px, py, pz = ox + t * dx, oy + t * dy, oz + t * dz
    u = ux * px + uy * py + uz * pz + u0
    v = vx * px + vy * py + vz * pz + v0
    # u, v and what is left of 1 are at least 0; a quotient that is no number fails every test.
    hit = (torch.minimum(torch.minimum(u, v), rest - u - v) >= 0) & (t > _NEAR)
    t = torch.where(hit, t, torch.inf)
    nearest = t.amin(1)
    return nearest, torch.where(hit & (t == nearest[:, None]), index[..., None], never).amin(1)


def _key(distance: Tensor, triangle: Tensor) -> Tensor:
    """A number that sorts by distance, then by triangle: the bits of floats above 0 sort like the floats."""
    return (distance.view(torch.int32).long() << 32) | triangle.long()


def _spread(x: Tensor, rays: Tensor) -> Tensor:
    """(N,) or (1,) to (packets, PACKET)."""
    return x.expand(rays.shape) if len(x) == 1 else x[rays]


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts (2, 3): rows (0, 0, 1, 1, 1) and numbers within the row (0, 1, 0, 1, 2)."""
    row = torch.repeat_interleave(counts)
    begin = counts.cumsum(0) - counts
    return row, torch.arange(len(row), device=counts.device) - begin[row]
