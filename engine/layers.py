"""The weights of a decoder of Llama's kind, as the CPU's kernel of it reads them: engine/decoder_kernel.py."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final

import torch
from numpy.typing import NDArray

from .activation import AlignedActivation
from .lanes import words
from .native import UNIT, registers
from .supported import Shape

_KINDS: Final = frozenset({"Llama", "Mistral", "Qwen2", "Qwen3"})
"""Of models whose arithmetic is the kernel's: two norms, two sums, turned queries and keys, a feed-forward with a gate."""

_ROWS: Final = 4
"""Tokens that a vocabulary has at least."""


def packs(hf: Any) -> bool:
    """Whether a model of transformers' is one that `Weights` can take the weights of, on this processor.

    Not one of which a part was wrapped, replaced or hooked: what it does then the kernel does not know.
    """
    width, has_pairs = registers()
    kind = type(hf).__name__.removesuffix("ForCausalLM")
    if kind not in _KINDS or hf.config.hidden_act not in ("silu", "swish") or not _is_plain(hf):
        return False
    if type(hf.model).__name__ != f"{kind}Model" or not _are_alike(hf.model.layers) or not _fits(hf):
        return False
    weights = list(hf.parameters())
    dtype, row = weights[0].dtype, hf.lm_head.weight[0]
    if any(weight.dtype != dtype or not weight.is_contiguous() for weight in weights):
        return False
    if len(row) * row.itemsize < 4 * width:
        return False  # of a row of the head it reads whole registers
    if dtype != torch.bfloat16:
        return dtype == torch.float32 and width > 0
    return has_pairs and all(weight.shape[1] % 2 == 0 for weight in weights if weight.dim() == 2)


def may_pack(shape: Shape, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model may be such, as far as its config says."""
    width, has_pairs = registers()
    is_known = device.type == "cpu" and shape.architecture.removesuffix("ForCausalLM") in _KINDS
    return is_known and (has_pairs if dtype == torch.bfloat16 else dtype == torch.float32 and width > 0)


def _is_plain(hf: Any) -> bool:
    """Whether a model and its parts are of transformers' own classes for it, of torch's and of AlignedActivation, without hooks."""
    *package, _ = type(hf).__module__.split(".")
    of_torch = (torch.nn.Linear, torch.nn.Embedding, torch.nn.ModuleList, AlignedActivation)
    inside = [module for module in hf.modules() if type(module) not in of_torch]
    epsilons = {module.variance_epsilon for module in inside if hasattr(module, "variance_epsilon")}
    return (
        package[:2] == ["transformers", "models"]
        and all(type(module).__module__ == type(hf).__module__ for module in inside)
        and len(epsilons) == 1
        and not any(map(is_hooked, hf.modules()))
    )


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether more is done when it is called than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))  # noqa: SLF001 - torch has no public name for them


def _are_alike(layers: Sequence[Any]) -> bool:
    """Whether all have parameters of the same names and shapes, and scale scores alike."""
    scales = {(layer.self_attn.head_dim, layer.self_attn.scaling) for layer in layers}
    return len(scales) == 1 and all(_shapes(layer) == _shapes(layers[0]) for layer in layers)


def _shapes(layer: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in layer.named_parameters()}


def _fits(hf: Any) -> bool:
    """Whether weights have the shapes that the kernel takes for granted: of others it would read what is not there."""
    embedding, head, layer = hf.model.embed_tokens.weight, hf.lm_head, hf.model.layers[0]
    if head.weight.shape != embedding.shape or head.bias is not None or len(embedding) < _ROWS:
        return False
    attention, mlp, dim = layer.self_attn, layer.mlp, layer.self_attn.head_dim
    queries, keys, wide = (len(one.weight) for one in (attention.q_proj, attention.k_proj, mlp.gate_proj))
    hidden = embedding.shape[1]
    linears = {
        attention.q_proj: (queries, hidden),
        attention.k_proj: (keys, hidden),
        attention.v_proj: (keys, hidden),
        attention.o_proj: (hidden, queries),
        mlp.gate_proj: (wide, hidden),
        mlp.up_proj: (wide, hidden),
        mlp.down_proj: (hidden, wide),
    }
    norms = {hf.model.norm: hidden} | {getattr(layer, name): hidden for name in _NORMS}
    norms |= {getattr(attention, name): dim for name in _HEAD_NORMS if hasattr(attention, name)}
    return (
        queries % keys == keys % dim == 0
        and all(one.weight.shape == shape for one, shape in linears.items())
        and all(one.bias is None or one.bias.shape == shape[:1] for one, shape in linears.items())
        and all(norm.weight.shape == (size,) for norm, size in norms.items())
    )


class Panels:
    """In each layer, the weights of some linear layers of the same input, one below the other, as the kernel reads them.

    panels: [layers, panels, in_features, UNIT] of float32; of bfloat16 [layers, panels, in_features / 2, UNIT * 2], as words.
    bias: float32 [layers, panels * UNIT], or [layers, 0] where none has one.   The columns of the last panel may be more than there are.
    in turn: a panel of the first of them, one of the second, and so on.
    """

    def __init__(self, num_layers: int, first: dict[str, Any], *, in_turn: bool = False) -> None:
        """`first`: those of the first layer, by their names in it. All but their shapes is to be filled in."""
        self._shapes = {name: linear.weight.shape for name, linear in first.items()}
        self._with_bias = [name for name, linear in first.items() if linear.bias is not None]
        self._in_turn = in_turn
        one = next(iter(first.values())).weight
        unit, self._dtype = UNIT, one.dtype
        outs = [shape[0] for shape in self._shapes.values()]
        num_panels = sum(-(-out // unit) for out in outs) if in_turn else -(-sum(outs) // unit)
        kind, step = (
            (torch.int32, one.shape[1] // 2) if one.dtype == torch.bfloat16 else (one.dtype, one.shape[1])
        )
        self._panels = torch.empty(num_layers, num_panels, step, unit, dtype=kind)
        self._bias = torch.zeros(num_layers, num_panels if self._with_bias else 0, 1, unit)
        self.panels = words(self._panels.view(self._dtype))
        self.bias: NDArray[Any] = self._bias.flatten(1).numpy()

    def fill(self, number: int, linears: dict[str, Any]) -> None:
        """Take over a layer's."""
        of_pairs = self._dtype == torch.bfloat16
        weights = [linear.weight.detach() for linear in linears.values()]
        self._fill(self._panels[number], [one.view(torch.int32) if of_pairs else one for one in weights])
        if self._with_bias:
            columns = [
                torch.zeros(len(linear.weight), 1)
                if linear.bias is None
                else linear.bias.detach().float()[:, None]
                for linear in linears.values()
            ]
            self._fill(self._bias[number], columns)

    def state(self, number: int) -> Iterator[tuple[str, torch.Tensor]]:
        """A layer's weights and biases by their names, as they were."""
        rows = self._rows(self._panels[number])
        bias = self._rows(self._bias[number]) if self._with_bias else rows
        for (name, shape), weight, of_it in zip(self._shapes.items(), rows, bias, strict=True):
            yield f"{name}.weight", weight[: shape[0]].contiguous().view(self._dtype)
            if name in self._with_bias:
                yield f"{name}.bias", of_it[: shape[0], 0].to(self._dtype)

    def _fill(self, panels: torch.Tensor, weights: list[torch.Tensor]) -> None:
        stacks = [[weight] for weight in weights] if self._in_turn else [weights]
        for i, stack in enumerate(stacks):
            _fill(panels[i :: len(stacks)], stack)

    def _rows(self, panels: torch.Tensor) -> list[torch.Tensor]:
        """What is in a layer's panels, each linear layer's rows, maybe more than there are."""
        rows = panels.transpose(1, 2)  # [panels, UNIT, in_features]
        if self._in_turn:
            return [rows[i :: len(self._shapes)].flatten(0, 1) for i in range(len(self._shapes))]
        outs = [shape[0] for shape in self._shapes.values()]
        return list(rows.flatten(0, 1)[: sum(outs)].split(outs))


def _fill(panels: torch.Tensor, weights: list[torch.Tensor]) -> None:
    """Rows one below the other into panels [panels, in_features, UNIT], 0 where there are no more."""
    unit = panels.shape[2]
    at = 0
    for weight in weights:
        head = min(-at % unit, len(weight))  # what the panel that was begun has room for
        whole = (len(weight) - head) // unit
        if head:
            panels[at // unit, :, at % unit : at % unit + head] = weight[:head].T
        begun = (at + head) // unit
        inner = weight[head : head + whole * unit].view(whole, unit, panels.shape[1])
        panels[begun : begun + whole].copy_(inner.transpose(1, 2))
        tail = weight[head + whole * unit :]
        if len(tail):
            panels[begun + whole, :, : len(tail)] = tail.T
        at += len(weight)
    if at % unit:
        panels[-1, :, at % unit :] = 0


class Weights:
    """A model's, of which each layer's are taken over one by one.

    layers: how many.   heads, kv_heads, dim, width: query heads of a layer, heads of keys and values, numbers of each, and
    of the feed-forward.   windows: each layer's, as calls of a batch have them.
    """

    def __init__(self, hf: Any) -> None:
        layers = hf.model.layers
        first = layers[0]
        attention, self.width = first.self_attn, first.mlp.down_proj.in_features
        self.num_layers, self.dim, self.scaling = len(layers), attention.head_dim, attention.scaling
        self.heads = attention.q_proj.out_features // self.dim
        self.kv_heads = attention.k_proj.out_features // self.dim
        self.epsilon = hf.model.norm.variance_epsilon
        self.windows = [_window(layer) for layer in layers]
        self._panels = [
            Panels(len(layers), linears, in_turn=number == _GATES)
            for number, linears in enumerate(_linears(first))
        ]
        self._embedding, self._head = hf.model.embed_tokens, hf.lm_head
        dtype, hidden = hf.lm_head.weight.dtype, hf.lm_head.in_features
        self._norms = torch.empty(len(layers), 2, hidden, dtype=dtype)
        self._last_norm = hf.model.norm
        self._of_heads = torch.empty(
            len(layers), 2, self.dim if hasattr(attention, "q_norm") else 0, dtype=dtype
        )

    def take(self, layers: Any, number: int) -> None:
        """Those of one of the model's layers, which then has a PackedLayer in its place."""
        layer = layers[number]
        for panels, linears in zip(self._panels, _linears(layer), strict=True):
            panels.fill(number, linears)
        for at, name in enumerate(_NORMS):
            self._norms[number, at] = getattr(layer, name).weight.detach()
        if self._of_heads.shape[2]:
            for at, name in enumerate(_HEAD_NORMS):
                self._of_heads[number, at] = getattr(layer.self_attn, name).weight.detach()
        layers[number] = PackedLayer(self, number, training=layer.training)

    def state(self, number: int) -> Iterator[tuple[str, torch.Tensor]]:
        """A layer's, as they were."""
        for panels in self._panels:
            yield from panels.state(number)
        for at, name in enumerate(_NORMS):
            yield f"{name}.weight", self._norms[number, at]
        if self._of_heads.shape[2]:
            for at, name in enumerate(_HEAD_NORMS):
                yield f"self_attn.{name}.weight", self._of_heads[number, at]

    @property
    def embedding(self) -> torch.Tensor:
        """[vocabulary, hidden]."""
        weight: torch.Tensor = self._embedding.weight.detach()
        return weight

    @cached_property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All, as the kernel has them: the layers' two norms, [layers, 2, hidden]; panels and bias of queries, keys and values; the norms
        of queries and of keys, [layers, 2, dim or 0]; panels and bias of what attention gives, of gates in turn with what they let
        through, and of what these give; the last norm; and the head, [vocabulary, hidden].
        """
        qkv, *others = ((one.panels, one.bias) for one in self._panels)
        last = (self._last_norm.weight, self._head.weight)
        return (
            words(self._norms),
            *qkv,
            words(self._of_heads),
            *(array for pair in others for array in pair),
            *(words(one.detach()) for one in last),
        )


_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS: Final = ("q_norm", "k_norm")
_GATES: Final = 2
"""Which of `_linears` are in turn."""


def _linears(layer: Any) -> list[dict[str, Any]]:
    """A layer's linear layers by their names, those of the same input together."""
    attention, feed_forward = layer.self_attn, layer.mlp
    return [
        {f"self_attn.{name}_proj": getattr(attention, f"{name}_proj") for name in "qkv"},
        {"self_attn.o_proj": attention.o_proj},
        {f"mlp.{name}_proj": getattr(feed_forward, f"{name}_proj") for name in ("gate", "up")},
        {"mlp.down_proj": feed_forward.down_proj},
    ]


def _window(layer: Any) -> int | None:
    """The tokens that a layer's rows see, None for all."""
    attention = layer.self_attn
    if type(layer).__name__.startswith("Mistral"):
        attention = attention.config
    window: int | None = getattr(attention, "sliding_window", None)
    return window


def taken(hf: Any) -> Weights | None:
    """Those of a model whose weights were taken over before, by whatever else computes with it."""
    return next((module.weights for module in hf.modules() if isinstance(module, PackedLayer)), None)


class PackedLayer(torch.nn.Module):
    """What is left of a layer whose weights were taken over: its state, as it was."""

    def __init__(self, weights: Weights, number: int, *, training: bool) -> None:
        super().__init__()
        self.weights, self._number = weights, number
        self.train(training)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:  # noqa: FBT001 - torch's own
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {f"{prefix}{name}": tensor for name, tensor in self.weights.state(self._number)}


class Seal:
    """Notices what is done to a model after its weights were taken over, of which the kernel would do nothing."""

    def __init__(self, hf: Any) -> None:
        """`hf`: as it is from now on. What turns queries and keys is called as ever, and may be hooked."""
        self._modules = [module for module in hf.modules() if module is not hf.model.rotary_emb]
        self._made_of = self._parts()

    def check(self) -> None:
        """Raise ValueError if it was hooked, or a part or weight was replaced. Takes 20 to 35 us, of a model of 30 layers."""
        if self._parts() != self._made_of or any(map(is_hooked, self._modules)):
            raise ValueError(
                "the model was hooked, or a part of it replaced, after an engine had taken over its weights: that would have no "
                "effect; change a model before it is given to an engine"
            )

    def _parts(self) -> list[object]:
        return [
            (*module._modules.values(), *map(_memory, module._parameters.values()))  # noqa: SLF001 - faster than torch's ways
            for module in self._modules
        ]


def _memory(weight: torch.Tensor | None) -> int:
    return 0 if weight is None else weight.data_ptr()
