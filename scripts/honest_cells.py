# SPDX-License-Identifier: Apache-2.0
"""The cells of tables about an honest server, which inverts gradients, at 32 x 32."""

from collections.abc import Iterator

from cells import CLOSED_FORM, CONVNET, PHOTOGRAPHS, SAMPLE, Z, cell, fixed
from measuring import Cell

# As small as images of published comparisons, 64 classes, and a clip that every gradient of these networks exceeds.
ALIKE = (
    "--data.image_size 32 --data.num_classes 64 --model.client.num_classes 64 "
    "--model.client.privacy.max_grad_norm 1.0 --model.record false"
)
HALF = "--trainer.precision bf16-mixed"
RESNET = "--model.client.network resnet18 --model.client.batch_norm eval"
FIRST_ORDER = (
    "--model.basis spectrum --model.schedule cosine --model.optimizer torch.optim.Adam --model.optimizer.lr 0.2"
)


def honest() -> Iterator[Cell]:
    """An honest server's attacks over the noise, 300 evaluations each, and our structure; batch, FedAvg, ResNet-18."""
    one = f"--data.batch_size 1 --data.clients 10 {SAMPLE} {ALIKE}"
    budget = "--model.chunk_size 10 --trainer.max_steps 300"
    for z in (0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
        yield cell(CONVNET, one, PHOTOGRAPHS, z=z)
        draws = "--model.draws 5" if z else ""
        for name in ("likelihood", "inverting_gradients"):
            yield searched(name, CONVNET, one, budget, draws, z=z)
            if z == 1e-3:
                yield searched(name, CONVNET, one, budget, HALF, z=z, precision="bf16-mixed")
        if z in (0, 1e-3, 1e-2):
            yield searched("inverting_gradients_modern", CONVNET, one, budget, z=z)
            yield searched("see_through_gradients", CONVNET, one, budget, "--model.restarts 2", z=z)
            for name in ("dlg", "idlg") if z < 1e-2 else ("dlg",):
                yield searched(name, CONVNET, one, "--trainer.max_steps 15", z=z)  # each step evaluates 20 times
    several = f"{CONVNET} --data.batch_size 4 --data.clients 2 {ALIKE} --model.chunk_size 2 --trainer.max_steps 300"
    averaged = f"{several} --model.client.local.steps 4 --model.client.local.update gradient"
    for name in ("likelihood", "inverting_gradients"):
        yield searched(name, several, SAMPLE, z=0, client="batch")
        yield searched(name, averaged, z=0, client="FedAvg")
    yield searched("likelihood", averaged, "--model.labels oracle", z=0, client="FedAvg")
    rough = f"{RESNET} --data.batch_size 1 --data.clients 10 {ALIKE}"
    for name, options in (("likelihood", FIRST_ORDER), ("inverting_gradients", "")):
        yield searched(name, rough, options, "--trainer.max_steps 100", z=0, client="ResNet-18")


def labels() -> Iterator[Cell]:
    """Labels recovered from the last layer's gradient, 1 to 16 images per client, both granularities."""
    for granularity in ("sample", "update"):
        for batch, clients in ((1, 64), (4, 16), (16, 4)):
            clip = f"--model.client.privacy.granularity {granularity} --model.draws 5"
            setting = f"{CONVNET} --data.batch_size {batch} --data.clients {clients} {ALIKE} {clip}"
            for z in (0, 1e-3, 1e-2, 3e-2, 1e-1, 0.3):
                yield searched("likelihood", setting, CLOSED_FORM, z=z)


def searched(name: str, *options: str, z: float, **columns: object) -> Cell:
    """An honest server's attack, 32 x 32, C = 1; one noise draw for each client, unless options ask for more."""
    presets = f"--config imagenet.yaml --config attack/{name}.yaml"
    line = " ".join((presets, *options, PHOTOGRAPHS, f"{Z} {fixed(z)}"))
    return Cell(" ".join(line.split()), columns=tuple(columns.items()))
