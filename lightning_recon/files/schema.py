# SPDX-License-Identifier: Apache-2.0
"""Schemas of records on disk, except `results.json`, with bounds so that no number in a file exhausts memory or disk.

Every bound lies far above real use. `serialization.validated` applies a schema strictly: it converts no text to
numbers, no numbers to booleans and no fractions to sizes, and refuses unknown fields unless the schema allows them.
"""

from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NotRequired,  # pydantic needs these before Python 3.12
)

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

STRICT: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

MOST_NUMBERS: Final = 1 << 30  # of one tensor: 4 GiB in float32
Index = Annotated[int, Field(ge=0, lt=1_000_000)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
Clients = Annotated[int, Field(ge=1, le=100_000)]
Rounds = Annotated[int, Field(ge=1, le=100_000)]
Classes = Annotated[int, Field(ge=1, le=100_000)]
Side = Annotated[int, Field(ge=1, le=4096)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]  # of bytes, steps, bits: nothing is allocated from it
Positive = Annotated[float, Field(gt=0, le=1e30)]
NotNegative = Annotated[float, Field(ge=0, le=1e30)]
Finite = Annotated[float, Field(ge=-1e30, le=1e30)]
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
    """Shape, dtype and hash of a tensor in a safetensors file, see `digests.describe`."""

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
    reproducible_noise: NotRequired[bool]
    max_grad_norm: NotRequired[Positive]
    contributors: NotRequired[Clients]


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
    """A decoded file, see `reconstruction.ReceivedFile`."""

    codec: Name
    rate: float
    bits: Count
    capacity: float


@with_config(STRICT)
class BeliefRecord(TypedDict):
    """Labels and files of one update, in the header of `reconstructions.safetensors`."""

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


@with_config(STRICT)
class VerifiedLineRecord(TypedDict):
    """A line in `verify.json`."""

    name: Name
    claimed: str
    measured: str
    p_value: Probability | None
    remark: str
    doubt: str
    verdict: Literal["holds", "refuted", "inconclusive", "not run"]


@with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))
class VerifiedClaimsRecord(TypedDict):
    """What was claimed of a client, in `verify.json`; see `verification.claims`."""

    privacy: dict[Name, Any]


@with_config(STRICT)
class VerificationRecord(TypedDict):
    """`verify.json`."""

    holds: bool
    false_alarms: Probability
    multiple_testing: Name
    releases: Count
    versions: dict[Name, Name]
    claims: VerifiedClaimsRecord
    lines: Annotated[list[VerifiedLineRecord], Field(max_length=_TENSORS)]


@with_config(STRICT)
class WaveRecord(TypedDict):
    """`wave.json`, the mark of a finished wave of clients."""

    first_client: Count
    clients: Clients
    first_image: Count
    next_image: Count


PAYLOAD: Final = TypeAdapter(PayloadRecord)
UPDATE: Final = TypeAdapter(UpdateRecord)
NETWORK: Final = TypeAdapter(NetworkRecord)
LABELS: Final = TypeAdapter(LabelsRecord)
TRUTH: Final = TypeAdapter(TruthRecord)
BELIEFS: Final = TypeAdapter(dict[Name, BeliefRecord])
ORIGINALS: Final = TypeAdapter(OriginalsRecord)
PLAN: Final = TypeAdapter(PlanRecord)
WAVE: Final = TypeAdapter(WaveRecord)
VERIFICATION: Final = TypeAdapter(VerificationRecord)
