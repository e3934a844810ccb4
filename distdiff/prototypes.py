"""Hierarchical prototypes of a class: its mean feature and the means of K groups (paper sec. 3.2).

N classes, K groups, D feature width. Features and prototypes have unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from expansion.classifier.backbones import Classifier
from expansion.classifier.transforms import prototype_transform
from expansion.common.errors import InputError
from expansion.images.records import ImageRecord


@dataclass(frozen=True)
class Prototypes:
    """Class prototypes (N, D) and group prototypes (N, K, D), unit length."""

    class_prototypes: Tensor
    group_prototypes: Tensor


def build_prototypes(
    features: Tensor, labels: Tensor, num_classes: int, num_groups: int
) -> Prototypes:
    """Build the class prototype and the group prototypes of every class.

    Args:
        features: (I, D) features of the real images; they are scaled to unit length first.
        labels: (I,), each in 0 .. num_classes - 1.
        num_classes: N.
        num_groups: K. A class of n < K images has n groups; they are repeated to fill K, which
            changes no nearest group.

    Raises:
        InputError: A class has no image.
    """
    features = F.normalize(features.float(), dim=-1)
    class_prototypes, group_prototypes = [], []
    for label in range(num_classes):
        members = features[labels == label]
        if len(members) == 0:
            raise InputError(
                f"class {label} has no image, so it has no prototype; add images of it"
            )
        class_prototypes.append(F.normalize(members.mean(0), dim=-1))
        group_prototypes.append(_group_prototypes(members, num_groups))
    return Prototypes(torch.stack(class_prototypes), torch.stack(group_prototypes))


def _group_prototypes(members: Tensor, num_groups: int) -> Tensor:
    """Mean features (K, D) of the groups that average-linkage clustering finds in one class.

    Distances are Euclidean. With fewer than K members the groups are repeated.
    """
    groups = torch.zeros(len(members), dtype=torch.long)
    if len(members) > 1:
        tree = linkage(members.cpu().double().numpy(), method="average")
        cut = cut_tree(tree, n_clusters=min(num_groups, len(members)))
        groups = torch.from_numpy(cut[:, 0]).long()
    means = [members[groups == g].mean(0) for g in range(int(groups.max()) + 1)]
    repeated = [means[k % len(means)] for k in range(num_groups)]
    return F.normalize(torch.stack(repeated), dim=-1)


@torch.inference_mode()
def extract_features(
    guide: Classifier, records: Sequence[ImageRecord], batch_size: int = 64
) -> Tensor:
    """Compute the guide's features (I, D) of real images, in their order, on the CPU.

    Args:
        guide: Classifier in eval mode.
        records: I images.
        batch_size: Images that go through the guide together.
    """
    transform = prototype_transform(guide.image_size)
    device = next(guide.parameters()).device
    loader = DataLoader(list(records), batch_size, collate_fn=lambda part: [r.load() for r in part])
    features = [
        guide.features(torch.stack([transform(i) for i in images]).to(device)) for images in loader
    ]
    return torch.cat(features).cpu()
