# SPDX-License-Identifier: Apache-2.0
"""Segment Anything finds subjects, through the real library with a tiny checkpoint; wrong checkpoints are refused."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import segment_anything
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from lightning_recon.data.sam_masks import SAM_CHECKPOINTS, SamMasks
from lightning_recon.data.sources import open_source
from lightning_recon.errors import UserError
from lightning_recon.image_format import rgb


@pytest.fixture(scope="module")
def noise() -> Tensor:
    """A random image."""
    return torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


def tiny_sam(checkpoint: None = None) -> Sam:
    """Segment Anything with one small layer everywhere, for images of 64 pixels."""
    encoder = ImageEncoderViT(
        img_size=64,
        patch_size=16,
        embed_dim=16,
        depth=1,
        num_heads=2,
        out_chans=32,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=0,
        global_attn_indexes=(0,),
    )
    prompts = PromptEncoder(embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4)
    transformer = TwoWayTransformer(depth=1, embedding_dim=32, mlp_dim=32, num_heads=2)
    decoder = MaskDecoder(
        num_multimask_outputs=3, transformer=transformer, transformer_dim=32, iou_head_depth=2, iou_head_hidden_dim=16
    )
    return Sam(encoder, prompts, decoder).eval()


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Path and SHA-256 of weights of the tiny model, which is registered for the test."""
    monkeypatch.setitem(segment_anything.sam_model_registry, "tiny", tiny_sam)
    torch.manual_seed(0)
    path = tmp_path / "tiny.pth"
    torch.save(tiny_sam().state_dict(), path)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def test_sam_agrees_with_the_library_s_own_predictor(checkpoint: tuple[str, str]) -> None:
    path, checksum = checkpoint
    source = open_source("samples", None)
    images = [source.read(index, rgb(48))[0] for index in range(5)]
    masks = list(SamMasks(path, "tiny", checksum.upper(), batch_size=2)(iter(images)))
    sam = tiny_sam()
    sam.load_state_dict(torch.load(path, weights_only=True))
    predictor, device = segment_anything.SamPredictor(sam), "cuda" if torch.cuda.is_available() else "cpu"
    sam.to(device)
    centre = torch.tensor([[24.0, 24.0]]).numpy()
    for image, mask in zip(images, masks, strict=True):
        predictor.set_image(image.permute(1, 2, 0).numpy())
        found, quality, _ = predictor.predict(centre, torch.ones(1).numpy(), multimask_output=True)
        expected = torch.from_numpy(found[quality.argmax()])
        assert mask.shape == (1, 48, 48)
        assert mask.dtype == torch.bool
        if expected.any():
            assert (mask[0] == expected).float().mean() > 0.999  # the encoder sees batches of two here
        else:
            assert mask.all()
    assert 0 < torch.stack(masks).float().mean() < 1


def test_sam_reads_no_checkpoint_while_there_is_nothing_to_do() -> None:
    assert list(SamMasks("/nowhere.pth")([])) == []


def test_sam_takes_its_checkpoint_from_the_environment(
    checkpoint: tuple[str, str], noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_RECON_SAM_CHECKPOINT", checkpoint[0])
    (mask,) = SamMasks(model_type="tiny", checksum=checkpoint[1])([noise])
    assert mask.shape == (1, 64, 64)


def missing(path: str, checksum: str) -> SamMasks:
    return SamMasks("/nowhere/sam.pth")


def unnamed(path: str, checksum: str) -> SamMasks:
    return SamMasks(model_type="vit_b")


def altered(path: str, checksum: str) -> SamMasks:
    with Path(path).open("ab") as file:
        file.write(b"x")
    return SamMasks(path, "tiny", checksum)


def of_another_model(path: str, checksum: str) -> SamMasks:
    return SamMasks(path, "vit_h")


def unknown_model(path: str, checksum: str) -> SamMasks:
    return SamMasks(path, "vit_x", checksum)


def truncated(path: str, checksum: str) -> SamMasks:
    content = Path(path).read_bytes()[:1000]
    Path(path).write_bytes(content)
    return SamMasks(path, "tiny", hashlib.sha256(content).hexdigest())


def other_weights(path: str, checksum: str) -> SamMasks:
    torch.save({"weight": torch.zeros(3)}, path)
    return SamMasks(path, "tiny", hashlib.sha256(Path(path).read_bytes()).hexdigest())


def executable(path: str, checksum: str) -> SamMasks:
    torch.save({"weight": print}, path)  # a pickle that calls for code
    return SamMasks(path, "tiny", hashlib.sha256(Path(path).read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, r"/nowhere/sam\.pth does not exist.*dl\.fbaipublicfiles\.com/segment_anything/sam_vit_h_4b8939\.pth"),
        (unnamed, r"no checkpoint.*sam_vit_b_01ec64\.pth.*LIGHTNING_RECON_SAM_CHECKPOINT"),
        (altered, "SHA-256"),
        (of_another_model, SAM_CHECKPOINTS["vit_h"][1]),
        (unknown_model, "unknown SAM model 'vit_x'.*vit_b"),
        (truncated, "does not hold weights of SAM tiny"),
        (other_weights, "does not hold weights of SAM tiny"),
        (executable, "does not hold weights of SAM tiny"),
    ],
)
def test_sam_refuses_a_wrong_checkpoint(
    checkpoint: tuple[str, str],
    noise: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[str, str], SamMasks],
    message: str,
) -> None:
    monkeypatch.delenv("LIGHTNING_RECON_SAM_CHECKPOINT", raising=False)
    with pytest.raises(UserError, match=message) as raised:
        list(make(*checkpoint)([noise]))
    assert "\n" not in str(raised.value)


def test_sam_refuses_wrong_settings() -> None:
    with pytest.raises(UserError, match=r"no published checksum.*'tiny'"):
        SamMasks(model_type="tiny")
    with pytest.raises(UserError, match="batch_size"):
        SamMasks(batch_size=0)
