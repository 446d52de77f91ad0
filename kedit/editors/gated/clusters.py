"""MELO's vector store: clusters of edited prompts' keys, each point with the block that learnt its edit."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kedit.editors.gated.gate import SAME, LabelMatch, Verdict, labels_match, nearest
from kedit.editors.gated.store import Store, with_entry, with_row

NO_BLOCK = -1


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """c clusters of p points. Changes make a new one."""

    centers: Float[Tensor, "c k"]
    radii: Float[Tensor, " c"]
    labels: Int[Tensor, "c t"]
    points: Float[Tensor, "p k"]
    blocks: Int[Tensor, " p"]
    cluster: Int[Tensor, " p"]  # which one a point belongs to

    @classmethod
    def read(cls, store: Store) -> "Clusters | None":
        """None if the store is empty."""
        if "centers" not in store:
            return None
        return cls(**{part.name: store[part.name] for part in fields(cls)})

    def write(self, store: Store) -> None:
        store.put(**{part.name: getattr(self, part.name) for part in fields(self)})

    def __len__(self) -> int:
        return len(self.centers)

    def find(self, queries: Float[Tensor, "m k"]) -> Verdict:
        """For each query the block of the nearest point of its nearest cluster, open within that cluster's radius."""
        distance, cluster = nearest(self.centers, queries)
        queries = queries.float()
        apart = torch.cdist(queries, self.points.to(queries), compute_mode="donot_use_mm_for_euclid_dist")
        apart = apart.masked_fill(self.cluster.to(cluster)[None] != cluster[:, None], torch.inf)
        point = len(self.points) - 1 - apart.flip(-1).argmin(-1)
        block = self.blocks.to(cluster)[point]
        return Verdict(block, distance, (distance <= self.radii.to(distance)[cluster]) & (block != NO_BLOCK))

    # --- edits -------------------------------------------------------------------------------------------------------

    def without_point(self, point: int) -> "Clusters | None":
        """A cluster that loses its last point goes; None if nothing is left."""
        keep = torch.arange(len(self.points), device=self.points.device) != point
        cluster = int(self.cluster[point])
        kept = replace(self, points=self.points[keep], blocks=self.blocks[keep], cluster=self.cluster[keep])
        if bool((kept.cluster == cluster).any()):
            return kept
        if len(self) == 1:
            return None
        others = torch.arange(len(self), device=self.centers.device) != cluster
        moved = torch.where(kept.cluster > cluster, kept.cluster - 1, kept.cluster)
        return replace(
            kept, centers=self.centers[others], radii=self.radii[others], labels=self.labels[others], cluster=moved
        )

    def with_point(self, cluster: int, key: Float[Tensor, " k"], block: int, radius: float) -> "Clusters":
        """One more point: the center is the mean of all, the radius reaches them, and is `radius` at least."""
        points = with_row(self.points, key)
        owners = with_row(self.cluster, torch.tensor(cluster))
        mine = points[owners == cluster]
        center = mine.mean(0)
        reach = max(radius, float((mine - center).norm(dim=-1).max()))
        return replace(
            self,
            points=points,
            blocks=with_row(self.blocks, torch.tensor(block)),
            cluster=owners,
            centers=with_entry(self.centers, cluster, center),
            radii=with_entry(self.radii, cluster, reach),
        )

    def shrunk(self, cluster: int, radius: float) -> "Clusters":
        """Points outside the new radius are dropped; an empty cluster keeps its place, without a block."""
        mine = self.cluster == cluster
        outside = mine & ((self.points - self.centers[cluster]).norm(dim=-1) > radius)
        kept = self._only(~outside)
        kept = replace(kept, radii=with_entry(self.radii, cluster, radius))
        if bool((kept.cluster == cluster).any()):
            return kept
        return replace(
            kept,
            points=with_row(kept.points, self.centers[cluster]),
            blocks=with_row(kept.blocks, torch.tensor(NO_BLOCK)),
            cluster=with_row(kept.cluster, torch.tensor(cluster)),
        )

    def _only(self, keep: Bool[Tensor, " p"]) -> "Clusters":
        return replace(self, points=self.points[keep], blocks=self.blocks[keep], cluster=self.cluster[keep])


def added(
    clusters: Clusters | None, key: Float[Tensor, " k"], label: Int[Tensor, " t"], block: int, radius: float
) -> Clusters:
    """With a new cluster of one point, the last."""
    number = 0 if clusters is None else len(clusters)
    new = {
        "centers": key.float(),
        "radii": torch.tensor(radius, device=key.device),
        "labels": label,
        "points": key.float(),
        "blocks": torch.tensor(block, device=key.device),
        "cluster": torch.tensor(number, device=key.device),
    }
    return Clusters(**{part: with_row(getattr(clusters, part, None), row) for part, row in new.items()})


def placed(
    clusters: Clusters | None,
    key: Float[Tensor, " k"],
    label: Int[Tensor, " t"],
    block: int,
    radius: float,
    how: LabelMatch,
    replaces: bool,
) -> Clusters:
    """With an edit's key (MELO, Alg. 1): far from all clusters it begins one of this `radius`; near one of the same
    answer it joins it; near one of another answer it begins one, and both radii are half the distance. `replaces`: the
    point of the same prompt, edited before, goes first."""
    if clusters is not None and replaces:
        apart, point = (found[0] for found in nearest(clusters.points, key[None]))
        clusters = clusters.without_point(int(point)) if float(apart) <= SAME * radius else clusters
    if clusters is None:
        return added(None, key, label, block, radius)
    found = nearest(clusters.centers, key[None])
    distance, cluster = float(found[0]), int(found[1])
    if distance > radius + float(clusters.radii[cluster]):
        return added(clusters, key, label, block, radius)
    if labels_match(how, label, clusters.labels[cluster]):
        return clusters.with_point(cluster, key, block, radius)
    return added(clusters.shrunk(cluster, distance / 2 - 1e-5), key, label, block, distance / 2 + 1e-5)
