# SPDX-License-Identifier: Apache-2.0
"""Schemas of records on disk: types, and bounds that prevent a number in a file from exhausting memory or disk.

Every bound lies far above real use. `serialization.validated` applies a schema strictly: it converts no text to
numbers, no numbers to booleans and no fractions to sizes, and refuses unknown fields unless the schema allows them.
"""

from typing import (
    Annotated,
    Final,
    Literal,
    NotRequired,  # pydantic needs these before Python 3.12
)

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

STRICT: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
# `results.json` may be of a later version, which knows more; what is read of it is checked all the same.
OPEN: Final = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

MOST_NUMBERS: Final = 1 << 30  # of one tensor: 4 GiB in float32
Index = Annotated[int, Field(ge=0, lt=1_000_000)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
Clients = Annotated[int, Field(ge=1, le=100_000)]
Rounds = Annotated[int, Field(ge=1, le=100_000)]
Classes = Annotated[int, Field(ge=1, le=100_000)]
Side = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]  # of bytes, steps, bits: nothing is allocated from it
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
Positive = Annotated[float, Field(gt=0, le=1e30)]
NotNegative = Annotated[float, Field(ge=0, le=1e30)]
Decibels = Annotated[float, Field(ge=-1e4, le=1e4)]
Probability = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=500)]
Text = Annotated[str, Field(max_length=1000)]
Label = Annotated[int, Field(ge=0, lt=100_000)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _bounded(shape: list[int]) -> list[int]:
    total = 1
    for size in shape:
        total *= size
    if total > MOST_NUMBERS:
        raise ValueError(f"a tensor of {total} numbers, and no more than {MOST_NUMBERS} are read")
    return shape


Shape = Annotated[list[Annotated[int, Field(ge=0, le=MOST_NUMBERS)]], Field(max_length=8), AfterValidator(_bounded)]


@with_config(STRICT)
class Fingerprint(TypedDict):
    """Shape and hash of a tensor that was not stored."""

    shape: Shape
    sha256: str


@with_config(STRICT)
class Stored(TypedDict):
    """What is known of a tensor in a safetensors file, see `storage.describe`."""

    shape: Shape
    dtype: Name
    sha256: Hash


@with_config(STRICT)
class StoredIn(Stored):
    """The same, with the file that holds it, without ending."""

    stored_in: Name


TensorName = Name
_TENSORS = 100_000


@with_config(STRICT)
class PayloadRecord(TypedDict):
    """`payload-*.json`."""

    digest: Hash
    settings: Annotated[dict[Name, bool | int | float | Text], Field(max_length=1000)]
    tensors: Annotated[dict[TensorName, StoredIn], Field(max_length=_TENSORS)]
    same_as: NotRequired[Name]


@with_config(STRICT)
class UpdateRecord(TypedDict):
    """`update-*.json`."""

    client: Index
    draw: Index
    round: Index
    payload: Hash
    whole: Annotated[dict[TensorName, Fingerprint], Field(max_length=_TENSORS)]
    omitted: Annotated[dict[TensorName, Fingerprint], Field(max_length=_TENSORS)]
    tensors: Annotated[dict[TensorName, Stored], Field(max_length=2 * _TENSORS)]


@with_config(STRICT)
class NetworkRecord(TypedDict):
    """`network.json`."""

    tensors: Annotated[dict[TensorName, Stored], Field(max_length=_TENSORS)]


@with_config(STRICT)
class LabelsRecord(TypedDict):
    """`labels-*.json`."""

    labels: list[Label]


@with_config(STRICT)
class TruthRecord(TypedDict):
    """The entry "truth" in the header of a truth file."""

    client: Index


@with_config(STRICT)
class FileRecord(TypedDict):
    """How an image's file arrived, see `reconstruction.ReceivedFile`."""

    codec: Name
    rate: float
    bits: Count
    capacity: float


@with_config(STRICT)
class BeliefRecord(TypedDict):
    """What the attacker says of the images of one update, in the header of `reconstructions.safetensors`."""

    evident: bool
    labels: list[Label] | None
    files: NotRequired[list[FileRecord | None] | None]


@with_config(STRICT)
class OriginalRecord(TypedDict):
    """A victim in `truth/index.json`."""

    client: Index
    index: Index
    name: Text
    mean_image_psnr: float
    photograph: NotRequired[Text]
    used: NotRequired[Text]


@with_config(STRICT)
class OriginalsRecord(TypedDict):
    """`truth/index.json`."""

    victims: list[OriginalRecord]


@with_config(STRICT)
class ChangeRecord(TypedDict):
    """A change in `plan.json`."""

    cost: Text
    cells: list[Name]


@with_config(STRICT)
class PlanRecord(TypedDict):
    """`plan.json`."""

    cells: dict[Name, Name]
    sweep: NotRequired[list[Name]]
    reference: NotRequired[list[Name]]
    changes: NotRequired[dict[Name, ChangeRecord]]


@with_config(OPEN)
class PrivacyRecord(TypedDict):
    """The section `privacy` of `results.json`, as far as reports read it."""

    mechanism: NotRequired[Name]
    granularity: Literal["sample", "update"]
    per_layer: bool
    max_grad_norm: Positive | None
    noise_multiplier: NotNegative
    rounds: Rounds
    batch_size: Batch
    delta: Annotated[float, Field(gt=0, lt=1)]
    adjacency: Literal["add_remove", "replace_one"]
    epsilon_nominal: NotNegative | None
    epsilon_accounted: NotNegative | None
    epsilon_by_adjacency: NotRequired[dict[Name, NotNegative | None]]
    epsilon_of_one_client: NotRequired[NotNegative | None]
    epsilon_of_sum: NotRequired[NotNegative | None]
    aggregated: NotRequired[Clients]
    noise_share: NotRequired[Literal["local", "distributed", "full", "shared"]]  # the last two: earlier versions
    mu: NotRequired[NotNegative | None]
    rero_gamma: dict[Name, Probability | None]


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
    ssim_mean: NotRequired[float | None]
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
class ResultsRecord(TypedDict):
    """`results.json`, as far as it is read."""

    schema_version: int
    attack: Name
    oracles: list[Name]
    seed: NotRequired[Seed | None]
    public_statistics: NotRequired[Text | None]
    subject_fraction: NotRequired[Probability | None]
    batchnorm: NotRequired[Text | None]
    participation: NotRequired[Probability | None]
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
    """Refuse a record in which one part takes another for granted that is not there."""
    privacy, baselines = record["privacy"], record["baselines"]
    if (privacy["epsilon_nominal"] is None) != (privacy["epsilon_accounted"] is None):
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


PAYLOAD: Final = TypeAdapter(PayloadRecord)
UPDATE: Final = TypeAdapter(UpdateRecord)
NETWORK: Final = TypeAdapter(NetworkRecord)
LABELS: Final = TypeAdapter(LabelsRecord)
TRUTH: Final = TypeAdapter(TruthRecord)
BELIEFS: Final = TypeAdapter(dict[Name, BeliefRecord])
ORIGINALS: Final = TypeAdapter(OriginalsRecord)
PLAN: Final = TypeAdapter(PlanRecord)
RESULTS: Final = TypeAdapter(Annotated[ResultsRecord, AfterValidator(_consistent)])
