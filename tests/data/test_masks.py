# SPDX-License-Identifier: Apache-2.0
"""Makers of masks find subjects, alike each time; SAM runs through the real library with a tiny checkpoint."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import segment_anything
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from lightning_recon.data.masks import SAM_CHECKPOINTS, GrabCutMasks, NoMasks, SamMasks
from lightning_recon.data.sources import open_source
from lightning_recon.errors import UserError


@pytest.fixture(scope="module")
def disc() -> tuple[Tensor, Tensor]:
    """A reddish disc on a bluish ground, both a little noisy, and where it is."""
    axis = torch.arange(64) - 31.5
    inside = axis[:, None] ** 2 + axis**2 < 18**2
    noise = torch.randint(0, 30, (3, 64, 64), generator=torch.Generator().manual_seed(0))
    colours = torch.tensor([[200, 40, 40], [20, 60, 200]])
    return (torch.where(inside, colours[0, :, None, None], colours[1, :, None, None]) + noise).byte(), inside[None]


def test_no_masks_take_everything(disc: tuple[Tensor, Tensor]) -> None:
    masks = list(NoMasks()([disc[0], disc[0][:, :32]]))
    assert [tuple(mask.shape) for mask in masks] == [(1, 64, 64), (1, 32, 64)]
    assert all(mask.all() and mask.dtype == torch.bool for mask in masks)


@pytest.mark.parametrize("work_size", [0, 128])
def test_grabcut_finds_the_disc(disc: tuple[Tensor, Tensor], work_size: int) -> None:
    image, inside = disc
    (mask,) = GrabCutMasks(work_size=work_size)([image])
    assert mask.shape == (1, 64, 64)
    assert mask.dtype == torch.bool
    assert (mask & inside).sum() / (mask | inside).sum() > 0.95


def test_grabcut_does_not_depend_on_what_came_before() -> None:
    pictures = open_source("samples", None)
    images = [pictures.read(index, 48)[0] for index in range(4)]
    forwards = list(GrabCutMasks()(images))
    backwards = list(GrabCutMasks()(reversed(images)))[::-1]
    assert torch.equal(torch.stack(forwards), torch.stack(backwards))
    assert 0 < torch.stack(forwards).float().mean() < 1


def test_grabcut_takes_the_whole_picture_where_it_finds_too_little(disc: tuple[Tensor, Tensor]) -> None:
    image, _ = disc
    (mask,) = GrabCutMasks(min_fraction=0.9)([image])
    assert mask.all()
    (flat,) = GrabCutMasks()([torch.full((3, 16, 16), 80, dtype=torch.uint8)])
    assert flat.all()


def test_grabcut_leaves_a_margin(disc: tuple[Tensor, Tensor]) -> None:
    (mask,) = GrabCutMasks(inset=0.2)([disc[0]])
    margin = round(0.2 * 64)
    assert not mask[:, :margin].any()
    assert not mask[..., 64 - margin :].any()


@pytest.mark.parametrize("wrong", [{"inset": 0.5}, {"inset": 0.0}, {"iterations": 0}, {"min_fraction": 2.0}])
def test_grabcut_refuses_wrong_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"--data\.masks\."):
        GrabCutMasks(**wrong)  # type: ignore[arg-type]


def test_fingerprints_tell_settings_apart() -> None:
    makers = [
        NoMasks(),
        GrabCutMasks(),
        GrabCutMasks(inset=0.1),
        GrabCutMasks(iterations=6),
        GrabCutMasks(seed=1),
        GrabCutMasks(min_fraction=0.1),
        GrabCutMasks(work_size=100),
        SamMasks(),
        SamMasks(model_type="vit_b"),
        SamMasks(checksum="0" * 64),
    ]
    assert len({maker.fingerprint for maker in makers}) == len(makers)
    assert SamMasks(checkpoint="a", batch_size=1).fingerprint == SamMasks(checkpoint="b", batch_size=2).fingerprint


# --- Segment Anything ---


def tiny_sam(checkpoint: None = None) -> Sam:
    """Segment Anything with one small layer everywhere, for pictures of 64 pixels."""
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
    pictures = open_source("samples", None)
    images = [pictures.read(index, 48)[0] for index in range(5)]
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
    checkpoint: tuple[str, str], disc: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_RECON_SAM_CHECKPOINT", checkpoint[0])
    (mask,) = SamMasks(model_type="tiny", checksum=checkpoint[1])([disc[0]])
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
    disc: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[str, str], SamMasks],
    message: str,
) -> None:
    monkeypatch.delenv("LIGHTNING_RECON_SAM_CHECKPOINT", raising=False)
    with pytest.raises(UserError, match=message) as raised:
        list(make(*checkpoint)([disc[0]]))
    assert "\n" not in str(raised.value)


def test_sam_refuses_wrong_settings() -> None:
    with pytest.raises(UserError, match=r"no published checksum.*'tiny'"):
        SamMasks(model_type="tiny")
    with pytest.raises(UserError, match="batch_size"):
        SamMasks(batch_size=0)
