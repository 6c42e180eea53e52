"""The editor's form: layers as people write them, numbers as moe_core bounds them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from common.told import told
from moe_core.sentences import CORE
from moe_core.strict_json import StrictJsonError, loads
from registry.models import ModelVersion

MAX_LAYERS = 512
RANGE = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?")
MAX_IMPORT_BYTES = 1 << 20


def layers_text(layers: Iterable[int]) -> str:
    """0,1,2,5 reads 0-2, 5."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1][1:] = [layer]
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def parse_layers(text: str) -> list[int]:
    """Read "0-2, 5, 7"; raise ValidationError naming the part that cannot be read."""
    layers: set[int] = set()
    for part in re.split(r"[,，、;\s]+", re.sub(r"\s*[-–]\s*", "-", text.strip())):
        if not part:
            continue
        found = RANGE.fullmatch(part)
        first = int(found[1]) if found else -1
        last = int(found[2]) if found and found[2] else first
        if not found or first > last or last >= MAX_LAYERS:
            raise ValidationError(
                _("“%(part)s” is no layer and no range of layers, such as 4 or 8-15.") % {"part": part[:40]}
            )
        layers.update(range(first, last + 1))
    if not layers:
        raise ValidationError(_("Choose at least one layer."))
    return sorted(layers)


BOUNDS = {
    "min_value": gettext_lazy("at least %(limit_value)s."),
    "max_value": gettext_lazy("at most %(limit_value)s."),
    "invalid": gettext_lazy("a whole number is needed."),
}


class LayoutForm(forms.Form):
    """Everything that the editor edits."""

    name = forms.CharField(label=gettext_lazy("Name"), max_length=120)
    base_version = forms.TypedChoiceField(label=gettext_lazy("Dense model to start from"), coerce=int)
    layers = forms.CharField(
        label=gettext_lazy("Layers with experts"), max_length=4000,
        help_text=gettext_lazy("For example 0-29 or 1, 3, 5-9."),
    )  # fmt: skip
    num_experts = forms.IntegerField(
        label=gettext_lazy("Experts per layer"), min_value=1, max_value=1024, error_messages=BOUNDS
    )
    top_k = forms.IntegerField(
        label=gettext_lazy("top-k, experts per token"), min_value=1, max_value=64, error_messages=BOUNDS
    )
    num_shared_experts = forms.TypedChoiceField(
        label=gettext_lazy("Shared expert"), coerce=int, choices=[(0, gettext_lazy("none")), (1, gettext_lazy("one"))]
    )
    moe_intermediate_size = forms.IntegerField(
        label=gettext_lazy("Expert width"), min_value=1, max_value=1 << 18, required=False, error_messages=BOUNDS,
        help_text=gettext_lazy("Empty: as wide as the dense feed-forward."),
    )  # fmt: skip
    note = forms.CharField(label=gettext_lazy("Why"), max_length=400, required=False)
    revision = forms.IntegerField(widget=forms.HiddenInput, required=False, min_value=1)

    def __init__(self, *args: Any, bases: Iterable[ModelVersion], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        bases = list(bases)
        self.fields["base_version"].choices = [(base.pk, str(base)) for base in bases]  # type: ignore[attr-defined]
        self.num_layers = {base.pk: base.spec["num_hidden_layers"] for base in bases}

    def clean(self) -> dict[str, Any]:
        """Compare the fields with each other, so that everything that is wrong is told at once."""
        data: dict[str, Any] = super().clean() or {}
        k, num_experts = data.get("top_k"), data.get("num_experts")
        if k and num_experts and k > num_experts:
            self.add_error("top_k", told(CORE.say("top_k_over_experts", top_k=k, num_experts=num_experts)))
        layers, num_layers = data.get("layers"), self.num_layers.get(data.get("base_version") or 0)
        if layers and num_layers and layers[-1] >= num_layers:
            sentence = CORE.say("layer_outside", layer=layers[-1], num_layers=num_layers, last=num_layers - 1)
            self.add_error("layers", told(sentence))
        return data

    def clean_layers(self) -> list[int]:
        """Layers as numbers."""
        return parse_layers(self.cleaned_data["layers"])

    def spec(self) -> dict[str, Any]:
        """The layout as plain data for moe_core."""
        data = self.cleaned_data
        return {
            "moe_layers": data["layers"],
            "num_experts": data["num_experts"],
            "top_k": data["top_k"],
            "num_shared_experts": data["num_shared_experts"],
            "moe_intermediate_size": data["moe_intermediate_size"],
        }


def initial_of(spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The form's values for a saved specification."""
    return {
        "layers": layers_text(spec["moe_layers"]),
        "num_experts": spec["num_experts"],
        "top_k": spec["top_k"],
        "num_shared_experts": spec["num_shared_experts"],
        "moe_intermediate_size": spec.get("moe_intermediate_size"),
        **more,
    }


class ImportForm(forms.Form):
    """A layout as JSON, as `export` writes it."""

    file = forms.FileField(label=gettext_lazy("JSON file"), required=False)
    text = forms.CharField(
        label=gettext_lazy("or its text"), required=False, widget=forms.Textarea(attrs={"rows": 8, "class": "mono"})
    )
    base_version = forms.TypedChoiceField(label=gettext_lazy("Dense model to start from"), coerce=int)

    def __init__(self, *args: Any, bases: Iterable[ModelVersion], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["base_version"].choices = [(base.pk, str(base)) for base in bases]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """Read the JSON, from the file or from the text."""
        data: dict[str, Any] = super().clean() or {}
        file = data.get("file")
        raw = file.read(MAX_IMPORT_BYTES + 1) if file else data.get("text", "").encode()
        if not raw.strip():
            raise ValidationError(_("Choose a file or paste the JSON."))
        try:
            parsed = loads(raw, max_bytes=MAX_IMPORT_BYTES)
        except StrictJsonError as error:
            raise ValidationError(_("This is not JSON that can be read: %(why)s.") % {"why": error}) from error
        if not isinstance(parsed, dict) or not isinstance(parsed.get("spec"), dict):
            raise ValidationError(_("The JSON must be an object with “name” and “spec”."))
        data["layout"] = {"name": str(parsed.get("name", ""))[:120], "spec": parsed["spec"]}
        return data


def export_text(name: str, spec: dict[str, Any]) -> str:
    """A layout as JSON that `ImportForm` reads."""
    return json.dumps({"format": "turnout.layout/1", "name": name, "spec": spec}, indent=2, ensure_ascii=False) + "\n"
