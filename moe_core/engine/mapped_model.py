"""A decoder from a panel file: built without memory, its panels and the other tensors mapped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.checkpoint.store import TORCH_DTYPES, read_spec
from moe_core.engine import late_modules
from moe_core.engine.packed_at_load import served_spec
from moe_core.kernels.cpu.attach import attach
from moe_core.kernels.cpu.panel_file import PanelReader, PanelWriter
from moe_core.kernels.cpu.panel_footer import PanelFileError
from moe_core.model.decoder import Decoder
from moe_core.spec import ModelSpec, ServeSpec

# By its name in a ModelSpec: config.json does not say it of files whose head differs from the embedding it ties it to.
TIED = "tie_word_embeddings"


def mapped_model(spec: ServeSpec, reader: PanelReader) -> tuple[Decoder, str]:
    """The decoder with its kernels attached, and their instruction set; inside a block `on_shelf(reader)`.

    Raises PanelFileError when the file is not of this decoder.
    """
    model = _without_memory(served_spec(_stored_spec(spec, reader), spec), TORCH_DTYPES[spec.dtype])
    model.eval()
    isa = attach(model, spec.num_threads)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for told in reader.tensors:
        like, dtype = held.get(told.name), getattr(torch, told.dtype, None)
        if like is None or like.dtype is not dtype or like.shape != told.shape or like.nbytes != told.bytes:
            raise PanelFileError(f"it has a tensor {told.name} that the model has not so")
        _put(model, told.name, torch.frombuffer(reader.bytes_of(told), dtype=dtype).view(told.shape))
    _require_whole(model)
    return model, isa


def _without_memory(spec: ModelSpec, dtype: torch.dtype) -> Decoder:
    try:
        with torch.device("meta"):
            return Decoder(spec, dtype)
    except NotImplementedError:
        # A layer asks for a shape that torch works out in Python.
        late_modules.read_all()
    with torch.device("meta"):
        return Decoder(spec, dtype)


def _stored_spec(spec: ServeSpec, reader: PanelReader) -> ModelSpec:
    """The model that the weight files hold, of which none is read here: what only they say is in the panel file."""
    stored = read_spec(spec.model_dir)
    return stored.model_copy(update={TIED: reader.facts.get(TIED, stored.tie_word_embeddings)})


def keep_tensors(model: Decoder, writer: PanelWriter) -> None:
    """Write every tensor that has memory, which is what `attach` left out of the panels, and whether the head is tied."""
    writer.facts[TIED] = model.spec.tie_word_embeddings
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "meta":
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            dtype = str(tensor.dtype).removeprefix("torch.")
            writer.add_tensor(name, dtype, tensor.shape, flat.numpy().data)


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    if last in module._parameters:
        setattr(module, last, nn.Parameter(value, requires_grad=False))
    else:
        setattr(module, last, value)


def _require_whole(model: nn.Module) -> None:
    """Raise PanelFileError when a tensor has no memory though no panels stand for it, or is known to nobody."""
    for path, module in model.named_modules():
        own = {**module._parameters, **module._buffers, **vars(module)}
        empty = [name for name, value in own.items() if isinstance(value, Tensor) and value.is_meta]
        if empty and not hasattr(module, "panels") and not _in_panels_of_parent(model, path):
            raise PanelFileError(f"it lacks {path}.{empty[0]}")


def _in_panels_of_parent(model: nn.Module, path: str) -> bool:
    """A dense feed-forward's maps lie in its own panels."""
    return hasattr(model.get_submodule(path.rpartition(".")[0]), "panels")
