"""Decoder layers of Llama's kind on the CPU, computed around their attention by engine/layer_kernel.py."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from .activation import AlignedActivation
from .attention import PagedKV, paged_attention
from .lanes import words
from .native import PROGRESS, UNIT, following, preceding, registers, watching
from .supported import Shape

_KINDS: Final = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)
"""Whose arithmetic is the kernel's: two norms, two sums, turned queries and keys, a feed-forward with a gate."""


def packs(layer: torch.nn.Module, config: Any) -> bool:
    """Whether a module is a layer that `PackedLayer` can take the place of, on this processor.

    Not one whose parts were wrapped, replaced or hooked: what they do then the kernel does not know.
    """
    width, has_pairs = registers()
    if (
        type(layer).__name__ not in _KINDS
        or config.hidden_act not in ("silu", "swish")
        or not _is_plain(layer)
    ):
        return False
    weights = list(layer.parameters())
    dtype = weights[0].dtype
    if any(weight.dtype != dtype or not weight.is_contiguous() for weight in weights):
        return False
    if dtype != torch.bfloat16:
        return dtype == torch.float32 and width > 0
    return has_pairs and all(weight.shape[1] % 2 == 0 for weight in weights if weight.dim() == 2)


def may_pack(shape: Shape, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model's layers are such, as far as its config says."""
    width, has_pairs = registers()
    kind = shape.architecture.replace("ForCausalLM", "DecoderLayer")
    return device.type == "cpu" and kind in _KINDS and (has_pairs if dtype == torch.bfloat16 else width > 0)


def prepare(dtype: torch.dtype) -> None:
    """Load the kernel for it, or have it compiled, so that no request waits for that."""
    numbers = words(torch.empty(0, dtype=dtype)).dtype
    preceding(numbers), following(numbers), watching()


def _is_plain(layer: torch.nn.Module) -> bool:
    """Whether a layer and its parts are of transformers' own classes, of torch's linear layer and of AlignedActivation, without hooks."""
    *package, _ = type(layer).__module__.split(".")
    inside = [
        module for module in layer.modules() if type(module) not in (torch.nn.Linear, AlignedActivation)
    ]
    epsilons = {module.variance_epsilon for module in inside if hasattr(module, "variance_epsilon")}
    return (
        package[:2] == ["transformers", "models"]
        and all(type(module).__module__ == type(layer).__module__ for module in inside)
        and len(epsilons) == 1
        and not any(map(is_hooked, layer.modules()))
    )


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether more is done when it is called than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))  # noqa: SLF001 - torch has no public name for them


class Panels:
    """The weights of linear layers of the same input, one below the other, as the kernel reads them.

    panels: [panels, in_features, UNIT] of float32; of bfloat16 [panels, in_features / 2, UNIT, 2], as words.   bias: float32
    [panels * UNIT], or [0] where no layer has one.   The columns of the last panel may be more than there are.   in turn: a panel of
    the first layer, one of the second, and so on.
    """

    def __init__(self, layers: dict[str, Any], *, in_turn: bool = False) -> None:
        self._shapes = {name: layer.weight.shape for name, layer in layers.items()}
        self._with_bias = [name for name, layer in layers.items() if layer.bias is not None]
        self._in_turn = in_turn
        self._dtype = next(iter(layers.values())).weight.dtype
        self._panels = _packed([layer.weight.detach() for layer in layers.values()], in_turn=in_turn)
        self.panels = words(self._panels).reshape(*self._panels.shape[:2], -1)
        self.bias: NDArray[Any] = np.empty(0, np.float32)
        if self._with_bias:
            columns = [
                torch.zeros(len(layer.weight), 1)
                if layer.bias is None
                else layer.bias.detach().float()[:, None]
                for layer in layers.values()
            ]
            self.bias = _packed(columns, in_turn=in_turn).flatten().numpy()

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The layers' weights and biases by their names, as they were."""
        rows = self._rows(self._panels)
        bias = self._rows(torch.from_numpy(self.bias)[:, None].view(-1, 1, UNIT)) if self._with_bias else rows
        for (name, shape), weight, of_it in zip(self._shapes.items(), rows, bias, strict=True):
            yield f"{name}.weight", weight[: shape[0]]
            if name in self._with_bias:
                yield f"{name}.bias", of_it[: shape[0], 0].to(self._dtype)

    def _rows(self, panels: torch.Tensor) -> list[torch.Tensor]:
        """What is in panels, each layer's rows, maybe more than there are."""
        if panels.dim() == 3:
            panels = panels[..., None]
        rows = panels.permute(0, 2, 1, 3).flatten(2)  # [panels, UNIT, in_features]
        if self._in_turn:
            return [rows[i :: len(self._shapes)].flatten(0, 1) for i in range(len(self._shapes))]
        return list(
            rows.flatten(0, 1)[: sum(shape[0] for shape in self._shapes.values())].split(
                [shape[0] for shape in self._shapes.values()]
            )
        )


def _packed(weights: list[torch.Tensor], *, in_turn: bool) -> torch.Tensor:
    """Panels of these rows: each number, or pair of bfloat16, is copied once."""
    of_pairs, unit = weights[0].dtype == torch.bfloat16, UNIT
    if of_pairs:
        weights = [weight.contiguous().view(torch.int32) for weight in weights]
    stacks = [[weight] for weight in weights] if in_turn else [weights]
    num_panels = [-(-sum(map(len, stack)) // unit) for stack in stacks]
    panels = weights[0].new_empty(sum(num_panels), weights[0].shape[1], unit)
    for i, stack in enumerate(stacks):
        _fill(panels[i :: len(stacks)], stack)
    return panels.view(torch.bfloat16).unflatten(2, (unit, 2)) if of_pairs else panels


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


class PackedLayer(torch.nn.Module):
    """A decoder layer that the kernel computes, save its attention. Takes the layer's place, memory and all; its state is the same.

    Rows have the same bits in any number of rows, computed by any number of threads.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, feed_forward = layer.self_attn, layer.mlp
        self.layer_idx, self._head_dim, self._scaling = (
            attention.layer_idx,
            attention.head_dim,
            attention.scaling,
        )
        self._window = getattr(attention, "sliding_window", None)
        if type(layer).__name__.startswith("Mistral"):
            self._window = attention.config.sliding_window
        self._qkv = Panels({f"self_attn.{name}_proj": getattr(attention, f"{name}_proj") for name in "qkv"})
        self._to_hidden = Panels({"self_attn.o_proj": attention.o_proj})
        sides = {f"mlp.{name}_proj": getattr(feed_forward, f"{name}_proj") for name in ("gate", "up")}
        self._to_gates = Panels(sides, in_turn=True)
        self._to_down = Panels({"mlp.down_proj": feed_forward.down_proj})
        self._width = feed_forward.down_proj.in_features
        self._heads = attention.q_proj.out_features // self._head_dim
        self._kv_heads = attention.k_proj.out_features // self._head_dim
        self._norms = {
            name: module.weight.detach() for name, module in layer.named_modules() if name.endswith("norm")
        }
        self._epsilon = layer.input_layernorm.variance_epsilon
        none = layer.input_layernorm.weight.detach()[:0]
        self._of_query, self._of_key = (
            words(self._norms.get(f"self_attn.{name}_norm", none)) for name in "qk"
        )
        self._first_norm, self._second_norm = (
            words(self._norms[name]) for name in ("input_layernorm", "post_attention_layernorm")
        )
        self.train(layer.training)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        paged: PagedKV | None = None,
        **passed: Any,
    ) -> torch.Tensor:
        """The layer's own, of [1, rows, hidden]."""
        assert paged is not None, "paged attention needs the batch: call the model through Model.forward"
        assert position_embeddings is not None, "a layer of this kind turns its queries and keys"
        x = hidden_states[0]
        query, kv = self.before(x, position_embeddings, paged)
        query, key, value = (rows.transpose(0, 1)[None] for rows in (query, *kv))
        attended, _ = paged_attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self._scaling,
            sliding_window=self._window,
            paged=paged,
            **passed,
        )
        return self.after(x, attended.reshape(len(x), -1), paged)[None]

    def before(
        self, x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor], paged: PagedKV
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, [rows, heads, dim], and keys and values, [2, rows, kv_heads, dim]."""
        rows, take = len(x), paged.pool.workspace.take
        for one in turns:
            if (
                one.shape != (1, rows, self._head_dim) or one.dtype != x.dtype
            ):  # the kernel would read what is not there
                raise ValueError(
                    f"heads of {self._head_dim} numbers cannot be turned by {one.dtype} {list(one.shape)}"
                )
        query = take("query", rows, self._heads, self._head_dim, dtype=x.dtype)
        kv = take("kv", 2, rows, self._kv_heads, self._head_dim, dtype=x.dtype)
        num_columns = (self._heads + 2 * self._kv_heads) * self._head_dim
        numbers = words(x)
        paged.pool.team.run(
            preceding(numbers.dtype),
            numbers,
            self._first_norm,
            self._qkv.panels,
            self._qkv.bias,
            self._of_query,
            self._of_key,
            self._epsilon,
            *(words(one[0]) for one in turns),
            words(take("normal", *x.shape, dtype=x.dtype)),
            take("sums", rows, num_columns, dtype=torch.float32).numpy(),
            words(query),
            words(kv),
            np.zeros(PROGRESS, np.int64),
            torch.get_num_threads(),
        )
        return query, kv

    def after(self, x: torch.Tensor, attended: torch.Tensor, paged: PagedKV) -> torch.Tensor:
        """What goes to the next layer, [rows, hidden]."""
        take, out = paged.pool.workspace.take, torch.empty_like(x)
        numbers = words(x)
        paged.pool.team.run(
            following(numbers.dtype),
            numbers,
            words(attended),
            self._to_hidden.panels,
            self._to_hidden.bias,
            self._second_norm,
            self._epsilon,
            self._to_gates.panels,
            self._to_gates.bias,
            self._to_down.panels,
            self._to_down.bias,
            take("sums", *x.shape, dtype=torch.float32).numpy(),
            words(take("normal", *x.shape, dtype=x.dtype)),
            words(take("gates", len(x), self._width, dtype=x.dtype)),
            words(out),
            np.zeros(PROGRESS, np.int64),
            torch.get_num_threads(),
        )
        return out

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:  # noqa: FBT001 - torch's own
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for product in (self._qkv, self._to_hidden, self._to_gates, self._to_down):
            destination |= {f"{prefix}{name}": tensor for name, tensor in product.state()}
        destination |= {f"{prefix}{name}.weight": tensor for name, tensor in self._norms.items()}
