"""Folders of embeddings as trainings leave them, without a training."""

from __future__ import annotations

import json
from pathlib import Path

from baselines.diffusion_inversion import __main__ as diffusion_inversion
from baselines.embeddings.command import REMEDY, make_work
from baselines.embeddings.sets import IDENTITY_FILE, images_to_text
from baselines.textual_inversion import __main__ as textual_inversion
from expansion.common.files import claim_folder

WIDTH = 64  # of assets/tiny-sd-digits


def stand_in_embeddings(
    folder: Path, kind: str, data_dir: Path, *options: object, dataset: str = "digits"
) -> Path:
    """Random embeddings of all classes; returns the folder.

    Args:
        folder: Where they go.
        kind: "textual_inversion" or "diffusion_inversion".
        data_dir: Where the dataset lies.
        options: Further words of the training's command.
        dataset: Name of the dataset.
    """
    import torch
    from safetensors.torch import save_file

    command = textual_inversion if kind == "textual_inversion" else diffusion_inversion
    words = ["-d", dataset, "--data_dir", data_dir, "--output_dir", folder, *options]
    (config,) = command.parse([str(word) for word in words])
    work = make_work(config)
    claim_folder(folder, IDENTITY_FILE, work.identity, REMEDY)
    generator = torch.Generator().manual_seed(3)
    for name, records in work.records.items():
        path = work.made.file_of(name)
        facts = None
        if kind == "textual_inversion":
            row = torch.randn((1, WIDTH), generator=generator) / 50
            tensors = {work.made.token_of(name): row}
        else:
            tensors = {
                r.file_name: torch.randn((5, WIDTH), generator=generator) / 3 for r in records
            }
            facts = images_to_text({r.file_name: (0, r.content) for r in records})
        save_file(tensors, path, facts)
        cost = {"unet_rows": config.unet_rows(len(records))}
        path.with_suffix(".json").write_text(json.dumps(cost))
    return folder
