# SPDX-License-Identifier: Apache-2.0
"""The settings of a shipped layer as a validated dataclass, read from the plain values in a payload."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, NotRequired, Self

from pydantic import Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload
from lightning_recon.files import schema
from lightning_recon.files.faults import reason_of
from lightning_recon.files.serialization import validated
from lightning_recon.losses import LossName
from lightning_recon.structure.coding.address_gate import ADDRESSES
from lightning_recon.structure.coding.channel_code import NAME
from lightning_recon.structure.coding.code_plan import PULSES_VERSION, TENSOR_VERSION, VERSION, Plan
from lightning_recon.structure.coding.trap_weights import TrapRecipe
from lightning_recon.suggestions import closest

# The setting that names a layer other than `InferenceStructure`, see `layer.build_layer`.
LAYER = "layer"

_REQUIRED = ("mean", "colour", "index", "gain", "constants", "lower", "upper", "code")
_DIRECTIONS = ("directions", "unit_direction")
_SIGNS = ("dithered", "dither")
_OPTIONAL = ("bias_constants", "offset", "digital_amplitudes", "step_gains", *_SIGNS, *ADDRESSES)

_Finite = Annotated[float, Field(ge=-1e30, le=1e30)]


@with_config(schema.STRICT)
class _Settings(TypedDict):
    """The settings as they are in a payload; `LayerSpec` says what they mean."""

    pixels: bool
    cancel: bool
    strength: schema.Positive
    target_scale: schema.NotNegative
    balanced: NotRequired[bool]
    loss: NotRequired[LossName]
    detach_logits: NotRequired[bool]
    moments: NotRequired[bool]
    pooling: NotRequired[schema.Side]
    blocks: NotRequired[Annotated[int, Field(ge=1, le=1 << 20)]]
    norm_ratio: NotRequired[schema.Positive]
    trap_scaling: NotRequired[_Finite]
    trap_deviation: NotRequired[_Finite]
    trap_seed: NotRequired[schema.Seed]
    zero_weight: NotRequired[bool]
    signs: NotRequired[bool]
    fixed_signs: NotRequired[bool]
    own_units: NotRequired[bool]
    digital_code: NotRequired[schema.Index]
    digital_inputs: NotRequired[Annotated[int, Field(ge=1, le=schema.MOST_NUMBERS)]]
    digital_header: NotRequired[schema.NotNegative]
    digital_fair: NotRequired[schema.Index]
    digital_sketch: NotRequired[schema.Probability]
    digital_shared: NotRequired[bool]
    digital_positions: NotRequired[Annotated[int, Field(ge=1, le=1 << 20)]]
    digital_pulses: NotRequired[schema.Index]
    digital_repeats: NotRequired[Annotated[int, Field(ge=1, le=1 << 10)]]
    digital_bit_depth: NotRequired[Annotated[int, Field(ge=8, le=16)]]
    digital_tensor: NotRequired[schema.Index]
    digital_jpeg_xl: NotRequired[bool]


_SCHEMA = TypeAdapter(_Settings)
_KNOWN = tuple(_Settings.__annotations__)


@dataclass(frozen=True)
class LayerSpec:
    """How to build an `InferenceStructure`, apart from its tensors.

    Args:
        pixels: Whether the layer sends pixels instead of cosine coefficients.
        cancel: Whether a frozen copy of opposite sign cancels the output of every unit.
        strength: Factor of the layer's output, and so of its gradient.
        target_scale: Factor of the target network's logits; 0 silences the network.
        balanced: Whether the head weights are chosen for each image from the network's logits.
        loss: The announced loss, for which they are chosen.
        detach_logits: Whether the network's own gradient is removed, see `TamperedNetwork`.
        moments: Whether the statistics of `leaked_moments` are sent beside the coefficients.
        pooling: The layer sends averages over squares of this width, in pixels, in place of the image.
        blocks: Over how many tensors the inputs are spread, a power of two, see `hadamard_spreading`.
        norm_ratio: Expected ratio of a row's L1 norm to its Euclidean norm, which the server has to know where the
            clip bounds the L1 norm; None otherwise.
        zero_weight: Whether the trained weight starts at zero, not at what the units measure, so that weight decay does
            nothing to a row before an image has reached it; needs `cancel`.
        signs: Whether all inputs are ±1: signs of coefficients plus dithers, see `coding.dither`, and codewords. The
            units then measure coefficients, which are no inputs.
        fixed_signs: Whether balanced head weights keep the signs of the tensor `code`, see `balanced_code`.
        own_units: Whether each image of a client gets a unit of its own, see `coding.own_units`; needs `cancel` and
            units that measure one direction.
        trap: What the units' weights are made from, in place of the tensors `directions` and `unit_direction`; None if
            those are there.
        digital: The digital code whose codewords are sent beside the coefficients; None without one.
    """

    pixels: bool
    cancel: bool
    strength: float
    target_scale: float
    balanced: bool = False
    loss: LossName = "cross_entropy"
    detach_logits: bool = False
    moments: bool = False
    pooling: int = 1
    blocks: int = 1
    norm_ratio: float | None = None
    zero_weight: bool = False
    signs: bool = False
    fixed_signs: bool = False
    own_units: bool = False
    trap: TrapRecipe | None = None
    digital: Plan | None = None

    @classmethod
    def of(cls, payload: ServerPayload) -> Self:
        """Read a payload's settings, and check them and the names of its tensors.

        Raises:
            UserError: A key is missing or unknown, a value has the wrong type, or keys contradict each other.
        """
        _refuse_unknown("settings", payload.settings, _KNOWN)
        _refuse_unknown("tensors", payload.tensors, (*_REQUIRED, *_DIRECTIONS, *_OPTIONAL))
        if lacking := [name for name in _REQUIRED if name not in payload.tensors]:
            raise UserError(f"the payload lacks the tensor {lacking[0]}, which the layer needs")
        try:
            settings = validated(payload.settings, _SCHEMA)
        except ValueError as error:
            raise UserError(f"the payload's settings describe no layer ({reason_of(error)})") from error
        blocks = settings.get("blocks", 1)
        for name, count in (("blocks", blocks), ("digital_positions", settings.get("digital_positions", 1))):
            if count & (count - 1):
                raise UserError(f"the payload's setting {name} is {count}: give a power of two")
        if settings.get("zero_weight") and not settings["cancel"]:
            raise UserError(
                "the payload's setting zero_weight needs cancel: without it the weight itself measures the images"
            )
        signs = [settings.get("signs", False), *(name in payload.tensors for name in _SIGNS)]
        if any(signs) != all(signs) or (all(signs) and not (settings["cancel"] and settings.get("zero_weight"))):
            raise UserError(
                "the payload's inputs are signs only with the settings signs, cancel and zero_weight and the tensors "
                "dithered and dither together"
            )
        addresses = [name in payload.tensors for name in ADDRESSES]
        if any(addresses) != all(addresses) or (any(addresses) and (not settings["cancel"] or blocks > 1)):
            raise UserError(
                f"the payload gates by addresses only with all of the tensors {', '.join(ADDRESSES)}, the setting "
                "cancel, and one block"
            )
        units = payload.tensors.get("unit_direction")
        if settings.get("own_units") and (not settings["cancel"] or units is None or bool(units.any())):
            raise UserError("the payload's setting own_units needs cancel, and units that measure one direction")
        trap = _trap(settings)
        directions = [name in payload.tensors for name in _DIRECTIONS]
        if any(directions) != all(directions) or (trap is None) != all(directions):
            raise UserError(
                "the payload must say once what its units measure: by the tensors directions and unit_direction, or by "
                "the settings of trap weights"
            )
        return cls(
            pixels=settings["pixels"],
            cancel=settings["cancel"],
            strength=settings["strength"],
            target_scale=settings["target_scale"],
            balanced=settings.get("balanced", False),
            loss=settings.get("loss", "cross_entropy"),
            detach_logits=settings.get("detach_logits", False),
            moments=settings.get("moments", False),
            pooling=settings.get("pooling", 1),
            blocks=blocks,
            norm_ratio=settings.get("norm_ratio"),
            zero_weight=settings.get("zero_weight", False),
            signs=settings.get("signs", False),
            fixed_signs=settings.get("fixed_signs", False),
            own_units=settings.get("own_units", False),
            trap=trap,
            digital=_digital(settings, payload),
        )


def layer_spec(payload: ServerPayload) -> LayerSpec | None:
    """The spec of a payload's layer; None if the payload adds nothing to the network, or a layer of another class."""
    if LAYER in payload.settings or not (payload.settings or payload.tensors):
        return None
    return LayerSpec.of(payload)


def sign_inputs(payload: ServerPayload) -> int:
    """Number of inputs of a layer whose inputs are signs."""
    digital = LayerSpec.of(payload).digital
    words = 0 if digital is None else digital.words
    return payload.tensors["dither"].numel() + words + payload.tensors["constants"].numel()


def channel_code_name(payload: ServerPayload) -> str | None:
    """Name of the channel code that a payload uses; None if it has no digital part."""
    spec = layer_spec(payload)
    return NAME if spec is not None and spec.digital is not None else None


def _refuse_unknown(kind: str, found: Collection[str], known: Collection[str]) -> None:
    for name in found:
        if name not in known:
            near = closest(name, known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)};"
            raise UserError(
                f"the payload's {kind} hold {name!r}, which the layer does not know: {hint} (a layer of your own is "
                f"named by the setting {LAYER!r})"
            )


def _trap(settings: _Settings) -> TrapRecipe | None:
    if not any(name.startswith("trap_") for name in settings):
        return None
    try:
        return TrapRecipe(settings["trap_scaling"], settings["trap_deviation"], settings["trap_seed"])
    except KeyError as error:
        raise UserError(f"the payload lacks {error.args[0]}, without which its trap weights are unknown") from error


def _digital(settings: _Settings, payload: ServerPayload) -> Plan | None:
    if not any(name.startswith("digital_") for name in (*settings, *payload.tensors)):
        return None
    try:
        tensor, positions = settings.get("digital_tensor", 0), settings.get("digital_positions", 1)
        known = settings["digital_code"] == VERSION and tensor in (0, TENSOR_VERSION)
        if not known or (positions > 1 and settings.get("digital_pulses") != PULSES_VERSION):
            raise UserError("the payload uses another digital code than this version of the package: create it again")
        return Plan(
            inputs=settings["digital_inputs"],
            header=settings["digital_header"],
            amplitudes=tuple(float(value) for value in payload.tensors["digital_amplitudes"]),
            fair=settings["digital_fair"],
            sketch=settings["digital_sketch"],
            shared=settings["digital_shared"],
            positions=positions,
            repeats=settings.get("digital_repeats", 1),
            bit_depth=settings.get("digital_bit_depth", 8),
            tensor=bool(tensor),
            jpeg_xl=settings.get("digital_jpeg_xl", False),
        )
    except KeyError as error:
        raise UserError(f"the payload lacks {error.args[0]}, without which its digital code is unknown") from error
