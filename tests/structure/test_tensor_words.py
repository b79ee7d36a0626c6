# SPDX-License-Identifier: Apache-2.0
"""A layer whose digital code consists of tensor operations: it is exported, traced and mapped, with equal bits."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.image_format import rgb
from lightning_recon.structure import Digital, InferenceStructure
from lightning_recon.structure.coding.channel_code import message_bits
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.coding.messages import image_of
from lightning_recon.structure.coding.modulation import header_words, symbols
from lightning_recon.structure.coding.pulses import pulses
from lightning_recon.structure.coding.tensor_codec import TensorCodec
from lightning_recon.structure.coding.tensor_words import TensorWords
from lightning_recon.structure.layer_spec import LayerSpec

Photographs = Callable[[int], Tensor]
SIZE, NOISE = 16, 0.005


class Network(nn.Module):
    """A model that holds the layer, as clients run it."""

    def __init__(self, layer: InferenceStructure) -> None:
        super().__init__()
        self.structure = layer

    def forward(self, images: Tensor) -> Tensor:
        return self.structure(images, images.new_zeros(images.shape[0], 10))


class Encoder(nn.Module):
    """The layer's inputs alone."""

    def __init__(self, layer: InferenceStructure) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.layer.encode(images)


@pytest.fixture
def payload(task: Callable[..., Task]) -> ServerPayload:
    return Digital(source_code="tensor").payload(task(SIZE, 1, NOISE))


@pytest.fixture
def layer(payload: ServerPayload) -> InferenceStructure:
    return InferenceStructure(payload)


@pytest.fixture
def images(photographs: Photographs) -> Tensor:
    return photographs(SIZE)[:2]


@pytest.fixture
def quiet() -> Iterator[None]:
    """Exporters warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def words(inputs: Tensor, payload: ServerPayload) -> Tensor:
    """Signs of the digital inputs; their amplitude follows the sketch, which is not computed in integers."""
    sketch, plan = len(payload.tensors["index"]), LayerSpec.of(payload).digital
    assert plan is not None
    return inputs[:, sketch : sketch + plan.words].sign()


def test_words_hold_the_message_of_the_fair_rung(
    payload: ServerPayload, layer: InferenceStructure, images: Tensor
) -> None:
    plan = LayerSpec.of(payload).digital
    assert plan is not None
    assert plan.tensor
    for sent, image in zip(words(layer.encode(images), payload), images, strict=True):
        assert torch.equal(sent[:HEADER], header_words()[plan.fair])
        message = (sent[HEADER:] < 0).long()[: message_bits(plan.fair, plan.inputs)]
        assert torch.equal(sent[HEADER:], symbols(message, plan.fair, plan.inputs))
        found = image_of(message, plan, rgb(SIZE))
        assert found is not None
        assert float((found[0] / 255 - image).square().mean()) < 10**-2.5


def test_codewords_are_sent_as_pulses_and_repeated(images: Tensor) -> None:
    plan = Plan(2_000, 1.0, (0.0, 1.0), 1, 0.0, shared=True, positions=4, repeats=2, tensor=True)
    both = TensorWords(plan, SIZE, SIZE)(images)
    assert both.shape == (2, plan.words)
    first, second = both.chunk(2, dim=1)
    assert torch.equal(first, second)
    message = TensorCodec(SIZE, SIZE, message_bits(1, 2_000))(images)[1]
    assert torch.equal(first[1, HEADER:], pulses(symbols(message, 1, 2_000), 4))


def test_images_arrive(
    photographs: Photographs, task: Callable[..., Task], release: Callable[..., ClientUpdate]
) -> None:
    images, announced, structure = photographs(16)[:2], task(16, 2, 2e-3, "update"), Digital(source_code="tensor")
    payload = structure.payload(announced)
    decoded = structure.decode(payload, announced, release(payload, announced, images))
    assert decoded.files is not None
    assert [file.codec for file in decoded.files if file is not None] == ["tensor"] * 2
    errors = (decoded.images[:, None] - images).square().flatten(2).mean(dim=2).amin(dim=0)
    assert float(errors.max()) < 10**-2.7


def test_gradients_of_mapped_samples_are_those_of_single_ones(layer: InferenceStructure, images: Tensor) -> None:
    network = Network(layer)
    parameters = {name: one.detach() for name, one in network.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(network, weights, (image[None],)), label[None])

    labels = torch.tensor([1, 2])
    mapped = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)["structure.weight"]
    for found, image, label in zip(mapped, images, labels, strict=True):
        assert torch.equal(found, grad(loss)(parameters, image, label)["structure.weight"])
    inputs = layer.encode(images)
    delta = mapped[:, 0] @ inputs.T / inputs.square().sum(dim=1)
    torch.testing.assert_close(mapped[:, 0], delta.diagonal()[:, None] * inputs, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("quiet")
def test_an_exported_layer_sends_the_same_bits(
    payload: ServerPayload, layer: InferenceStructure, images: Tensor
) -> None:
    expected = words(layer.encode(images), payload)
    exported = torch.export.export(Encoder(layer), (images,)).module()
    for shown, sent in ((images, expected), (images.flip(0), expected.flip(0))):
        assert torch.equal(words(exported(shown), payload), sent)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_a_model_with_the_layer_is_exported(layer: InferenceStructure, images: Tensor) -> None:
    exported = torch.export.export(Network(layer), (images,)).module()
    assert torch.equal(exported(images), torch.zeros(2, 10))


@pytest.mark.usefixtures("quiet")
def test_a_traced_layer_sends_the_same_bits(payload: ServerPayload, layer: InferenceStructure, images: Tensor) -> None:
    expected = words(layer.encode(images), payload)
    traced = torch.jit.trace(Encoder(layer), (images,), check_trace=False)
    for shown, sent in ((images, expected), (images.flip(0), expected.flip(0))):
        assert torch.equal(words(traced(shown), payload), sent)
    network = torch.jit.trace(Network(InferenceStructure(payload)), (images,), check_trace=False)
    assert bool((network(images.flip(0)) == 0).all())


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_onnx_runtime_sends_the_same_bits(
    payload: ServerPayload, layer: InferenceStructure, images: Tensor, tmp_path: Path
) -> None:
    import onnxruntime

    file = str(tmp_path / "layer.onnx")
    torch.onnx.export(Encoder(layer), (images,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    expected = words(layer.encode(images), payload)
    for shown, sent in ((images, expected), (images.flip(0), expected.flip(0))):
        (found,) = session.run(None, {session.get_inputs()[0].name: shown.numpy()})
        assert torch.equal(words(torch.from_numpy(found), payload), sent)


def test_the_image_library_is_the_default_and_other_versions_are_refused(
    payload: ServerPayload, task: Callable[..., Task]
) -> None:
    usual = Digital(jpeg_xl=False).payload(task(SIZE, 1, NOISE))
    assert "digital_tensor" not in usual.settings
    plan = LayerSpec.of(usual).digital
    assert plan is not None
    assert replace(plan, tensor=True) == LayerSpec.of(payload).digital
    settings = {**payload.settings, "digital_tensor": 2}
    with pytest.raises(UserError, match="another digital code"):
        LayerSpec.of(replace(payload, settings=settings))
