# SPDX-License-Identifier: Apache-2.0
"""Schema of `results.json`, as far as it is read: types and bounds, as in `schema`, and fields that need each other."""

from typing import (
    Annotated,
    Final,
    Literal,
    NotRequired,  # pydantic needs these before Python 3.12
)

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from lightning_recon.files.schema import (
    Batch,
    Clients,
    Count,
    Index,
    Name,
    NotNegative,
    Positive,
    Probability,
    Rounds,
    Seed,
    Text,
)

# A record may be of a later version, which has more fields; those that are read are checked all the same.
OPEN: Final = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

Decibels = Annotated[float, Field(ge=-1e4, le=1e4)]


@with_config(OPEN)
class SamplingRecord(TypedDict):
    """The entry `sampling` of `privacy`."""

    method: Name
    images: Batch
    rate: Probability
    expected_rounds: NotRequired[NotNegative]
    most_rounds: NotRequired[Rounds]
    epsilon_if_hidden: NotNegative | None


@with_config(OPEN)
class PrivacyRecord(TypedDict):
    """The section `privacy` of `results.json`, as far as reports read it."""

    mechanism: NotRequired[Name]
    granularity: Literal["sample", "update"]
    per_layer: bool
    max_grad_norm: Positive | None
    noise_multiplier: NotNegative
    noise_bands: NotRequired[Rounds]  # earlier versions: 1
    adaptive_clip: NotRequired[dict[Name, float] | None]
    rounds: Rounds
    releases_per_round: NotRequired[Rounds]
    batch_size: Batch
    delta: Annotated[float, Field(gt=0, lt=1)]
    adjacency: Literal["add_remove", "replace_one"]
    epsilon_nominal: NotNegative | None
    epsilon_accounted: NotNegative | None
    epsilon_by_adjacency: NotRequired[dict[Name, NotNegative | None]]
    epsilon_of_one_client: NotRequired[NotNegative | None]
    epsilon_of_sum: NotRequired[NotNegative | None]
    aggregated: NotRequired[Clients]
    participation: NotRequired[Probability | None]
    client_dropout: NotRequired[Probability]  # earlier versions: ε of complete sums
    noise_share: NotRequired[Literal["local", "distributed", "full", "shared"]]  # the last two: earlier versions
    mu: NotRequired[NotNegative | None]
    reproducible_noise: NotRequired[bool | None]  # earlier versions: all noise was, of simulated clients
    membership_advantage: NotRequired[Probability]  # earlier versions state neither
    membership_tpr: NotRequired[dict[Name, Probability]]
    rero_gamma: dict[Name, Probability | None]
    sampling: NotRequired[SamplingRecord | None]


@with_config(OPEN)
class LocalTrainingRecord(TypedDict):
    """The section `local_training`."""

    words: Text
    plain_step: bool
    optimizer: Name
    epochs: Rounds
    steps: Count


@with_config(OPEN)
class CompressionRecord(TypedDict):
    """The section `compression`."""

    words: Text
    method: Name


@with_config(OPEN)
class QuantizationRecord(TypedDict):
    """The section `quantization`."""

    words: Text


@with_config(OPEN)
class DenoiserRecord(TypedDict):
    """The section `denoiser`."""

    class_path: Text
    weights_sha256: Text


@with_config(OPEN)
class VictimRecord(TypedDict):
    """An entry of `victims`; most is null where no truth was at hand."""

    client: Index
    index: Index | None
    draw: Index
    detected: bool | None
    psnr: Decibels | None
    ssim: NotRequired[float | None]
    bit_exact: NotRequired[bool | None]
    identified: NotRequired[bool | None]
    first_round: NotRequired[Index | None]
    rounds_seen: NotRequired[NotNegative | None]
    image: NotRequired[Text | None]


@with_config(OPEN)
class SummaryRecord(TypedDict):
    """The section `summary`."""

    clients: NotRequired[Index]
    draws: NotRequired[Index]
    victims: NotRequired[Count]
    detected: NotRequired[NotNegative | None]
    collided: NotRequired[NotNegative | None]
    false_detections: NotRequired[NotNegative | None]
    psnr_mean: NotRequired[Decibels | None]
    psnr_mean_low: NotRequired[Decibels | None]
    psnr_mean_high: NotRequired[Decibels | None]
    psnr_worst: NotRequired[Decibels | None]
    lost_share: NotRequired[Probability | None]
    ssim_mean: NotRequired[float | None]
    identification: NotRequired[Probability | None]
    gallery_size: NotRequired[Count | None]
    identification_chance: NotRequired[Probability | None]
    identification_bound: NotRequired[Probability | None]
    recognition_top1: NotRequired[Probability | None]
    recognition_top5: NotRequired[Probability | None]
    recognition_top1_mean_image: NotRequired[Probability | None]
    recognition_top5_mean_image: NotRequired[Probability | None]
    seconds: NotRequired[NotNegative | None]
    steps: NotRequired[Count | None]
    structure_bytes: NotRequired[Count | None]


@with_config(OPEN)
class BaselinesRecord(TypedDict):
    """The section `baselines`."""

    mean_image_psnr: Decibels | None
    black_psnr: NotRequired[Decibels | None]


@with_config(OPEN)
class CaptureRecord(TypedDict):
    """The section `capture`, of a captured update."""

    source: Text
    remarks: list[Text]


@with_config(OPEN)
class SkippedRecord(TypedDict):
    """An image that could not be read."""

    name: Text
    reason: Text


@with_config(OPEN)
class MismatchRecord(TypedDict):
    """An entry of `mismatch`: what was announced, and what how many updates show."""

    announced: float | bool | None
    found: float | bool
    updates: Index


@with_config(OPEN)
class TrainingMismatchRecord(TypedDict):
    """The entry `local_training` of `mismatch`: why the structure was not designed for it, and the estimated cost."""

    reason: Text
    cost_db: float | None


@with_config(OPEN)
class ResultsRecord(TypedDict):
    """`results.json`, as far as it is read."""

    schema_version: int
    attack: Name
    oracles: list[Name]
    seed: NotRequired[Seed | None]
    public_statistics: NotRequired[Text | None]
    denoiser: NotRequired[DenoiserRecord | None]
    subject_fraction: NotRequired[Probability | None]
    batchnorm: NotRequired[Text | None]
    participation: NotRequired[Probability | None]
    client_dropout: NotRequired[Probability | None]
    local_training: NotRequired[LocalTrainingRecord | None]
    compression: NotRequired[CompressionRecord | None]
    quantization: NotRequired[QuantizationRecord | None]
    mismatch: NotRequired[dict[Name, MismatchRecord | TrainingMismatchRecord] | None]
    payload_alarms: NotRequired[list[Text] | None]
    alarms: NotRequired[list[Text] | None]  # the name of earlier versions
    capture: NotRequired[CaptureRecord]
    skipped_pictures: NotRequired[list[SkippedRecord]]
    privacy: PrivacyRecord
    baselines: BaselinesRecord | None
    bounds: dict[Name, float | None] | None
    victims: list[VictimRecord]
    summary: SummaryRecord


def _consistent(record: ResultsRecord) -> ResultsRecord:
    """Refuse a record in which a part is missing that another part requires."""
    privacy, baselines = record["privacy"], record["baselines"]
    # The nominal epsilon is a formula for Gaussian noise.
    gaussian = privacy.get("mechanism", "gaussian") == "gaussian"
    if gaussian and (privacy["epsilon_nominal"] is None) != (privacy["epsilon_accounted"] is None):
        raise ValueError("privacy has one of the two epsilons without the other")
    if "0.1" not in privacy["rero_gamma"]:
        raise ValueError("privacy.rero_gamma lacks 0.1")
    scored = [victim for victim in record["victims"] if victim["psnr"] is not None]
    if not scored:
        return record
    wanted = (
        (len(scored) == len(record["victims"]), "psnr of every victim"),
        (all(one["index"] is not None and one["detected"] is not None for one in scored), "index and detected"),
        (all(one.get("image") for one in scored), "image of every victim"),
        (baselines is not None and baselines["mean_image_psnr"] is not None, "baselines.mean_image_psnr"),
        (record["summary"].get("ssim_mean") is not None, "summary.ssim_mean"),
        (record["summary"].get("draws") is not None, "summary.draws"),
        (record.get("subject_fraction") is not None, "subject_fraction"),
    )
    if lacking := [what for there, what in wanted if not there]:
        raise ValueError(f"it has scores without {lacking[0]}")
    return record


RESULTS: Final = TypeAdapter(Annotated[ResultsRecord, AfterValidator(_consistent)])
