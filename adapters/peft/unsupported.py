"""The methods and settings of PEFT that are refused, with the reason that the client is told. Imports no torch."""

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import InvalidAdapter, UnsupportedAdapter

# Initialisations that change the base by something that cannot be computed from the base again.
BASE_CHANGING_INITS = ("pissa_niter", "corda", "lora_ga")
SERVED_INITS = ("gaussian", "eva", "orthogonal", "mica", "pissa", "olora")

# Methods that a server of one base cannot serve as PEFT computes them.
UNSERVABLE: Mapping[str, str] = {
    "LILY": "its router averages over all tokens of a batch, so the answer depends on the neighbours; train LoRA",
    "SHADOW": "it runs a second network beside the base; serve the trained model as a base of its own",
    "XLORA": "its classifier is saved by PEFT without the first layer, so no checkpoint is whole; upload the experts "
    "one by one, mix them by the field `adapters`, or route between them by Arrow",
}


def refuse_type(peft_type: Any, served: Collection[str]) -> None:
    """Check that a configuration's `peft_type` is one of `served`.

    Raises UnsupportedAdapter for another method of PEFT, InvalidAdapter for anything else.
    """
    if isinstance(peft_type, str) and peft_type in UNSERVABLE:
        raise unsupported(peft_type, UNSERVABLE[peft_type], param="peft_type")
    if not isinstance(peft_type, str) or peft_type not in served:
        raise InvalidAdapter(
            f"peft_type must name a method of PEFT, such as LORA, not {repr(peft_type)[:80]}", param="peft_type"
        )


def refuse_fields(raw: Mapping[str, Any], table: Mapping[str, str], known: frozenset[str] | None = None) -> None:
    """Raise UnsupportedAdapter for the first field that is set and is in `table`, or is not `known`.

    known: None where other fields have no effect.
    """
    for name, why in table.items():
        if raw.get(name):
            raise unsupported(name, why, param=name)
    for name, value in raw.items() if known is not None else ():
        if value and name not in (known or ()) and name not in table:
            raise unsupported(name[:80], "no such field is known here; it may change the result", param=name[:80])


def refuse_lora_values(raw: Mapping[str, Any]) -> None:
    """Raise UnsupportedAdapter for an initialisation that changes more than the adapter's own factors."""
    init = raw.get("init_lora_weights")
    if init is None or isinstance(init, bool) or (isinstance(init, str) and init.lower() in SERVED_INITS):
        return
    name = f"init_lora_weights={str(init)[:40]!r}"
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        why = (
            "it leaves the base changed by what is random or depends on data; save the adapter with "
            "path_initial_model_for_weight_conversion, which makes it one for the original base"
        )
        raise unsupported(name, why, param="init_lora_weights")
    if isinstance(init, str) and init.lower() == "loftq":
        why = (
            "it belongs to weights that LoftQ put in place of the base's; serve that base, as "
            "`get_base_model().save_pretrained` writes it, and upload the adapter with init_lora_weights=true"
        )
        raise unsupported(name, why, param="init_lora_weights")
    raise unsupported(name, "no such initialisation of PEFT is known here", param="init_lora_weights")


def unsupported(what: str, why: str, *, param: str) -> UnsupportedAdapter:
    """Return the error for something that is not served yet. why: the reason, and what to do instead."""
    return UnsupportedAdapter(f"{what} is not supported yet: {why}", param=param)
