"""Attention over the block pool, under a name that transformers' models can be told to use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from .batch import Batch
from .calls import DecodeCall, PrefillCall, Tile
from .flashinfer import FlashInferCall
from .gather import Gather
from .lanes import LaneCall
from .pool import DevicePool

NAME = "kvtide_paged"
"""Not registered as a mask function too, so that transformers builds no mask."""

# What transformers' models pass along that has no effect here: positions are in the keys already.
_HARMLESS = frozenset(
    {"position_ids", "use_cache", "cache_position", "output_attentions", "output_router_logits"}
)


@dataclass(frozen=True, slots=True)
class PagedKV:
    """What a forward hands to each layer's attention."""

    batch: Batch
    pool: DevicePool
    before_layer: Callable[[int], None]


def register() -> None:
    """Make the attention known to transformers. Doing so twice is harmless."""
    AttentionInterface.register(NAME, paged_attention)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    paged: PagedKV | None = None,
    **unknown: Any,
) -> tuple[torch.Tensor, None]:
    """Write a layer's new keys and values to the pool, then attend over each sequence's blocks.

    query: [1, heads, R, head_dim]; key, value: [1, kv_heads, R, head_dim], after rotary embedding. Returns
    [1, R, heads, head_dim] and None. sliding_window: of this layer, in tokens, one of those that the batch was built
    for. Raises ValueError for what it does not implement: a mask of the model's own, attention sinks, soft caps.
    """
    assert paged is not None, "paged attention needs the batch: call the model through Model.forward"
    _refuse_unknown(attention_mask, dropout, unknown)
    if sliding_window not in paged.batch.calls:
        raise ValueError(
            f"a layer's sliding window of {sliding_window} tokens is not what the model's config says"
        )
    number: int = module.layer_idx  # type: ignore[assignment]  # transformers numbers its layers
    return attend_over(number, query, key, value, paged, sliding_window, scaling), None


def attend_over(
    number: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    paged: PagedKV,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    """The same for the layer of this number, whose window the batch was built for; of rows without dummy rows too."""
    paged.before_layer(number)
    layer = paged.pool.layer_view(number)
    _write(layer, key, value, paged.batch)
    return attend(query, layer, paged.batch, window, scaling)


def attend(
    query: torch.Tensor, layer: torch.Tensor, batch: Batch, window: int | None, scaling: float | None
) -> torch.Tensor:
    """Attention of a batch's rows over one layer of the pool, in which their keys and values are already.

    query: [1, heads, R, head_dim].   layer: a layer_view of the pool that the batch was built for.   window: of that
    layer.   scaling: None is head_dim**-0.5. Returns [1, R, heads, head_dim], zero in dummy rows.
    """
    calls = batch.calls[window]
    if isinstance(calls, FlashInferCall):
        return calls.attend(query, layer, scaling)
    if len(calls) == 1 and query.shape[2] == batch.num_tokens:
        return _attend(calls[0], query, layer, batch.gather, scaling)
    out = query.new_zeros(1, query.shape[2], query.shape[1], query.shape[3])
    for call in calls:
        out[:, call.rows] = _attend(call, query, layer, batch.gather, scaling)
    return out


def _refuse_unknown(mask: torch.Tensor | None, dropout: float, unknown: dict[str, Any]) -> None:
    if unknown.pop("is_causal", None) is False:
        raise ValueError("this model attends in both directions, which a prefix cache cannot serve")
    names = [name for name, value in unknown.items() if value is not None and name not in _HARMLESS]
    if names:
        raise ValueError(f"this model's attention uses {', '.join(names)}, which is not implemented")
    if mask is not None:
        raise ValueError("this model builds an attention mask of its own, which is not implemented")
    if dropout:
        raise ValueError("dropout in attention is for training; put the model in eval mode")


def _write(layer: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
    num_rows = key.shape[2]
    place = (batch.slots[:num_rows], batch.offsets[:num_rows])
    layer[:, 0].index_put_(place, key[0].transpose(0, 1).to(layer.dtype))
    layer[:, 1].index_put_(place, value[0].transpose(0, 1).to(layer.dtype))


def _attend(
    call: LaneCall | PrefillCall | DecodeCall,
    query: torch.Tensor,
    layer: torch.Tensor,
    gather: Gather,
    scaling: float | None,
) -> torch.Tensor:
    """The call's rows of the result, [1, rows, heads, head_dim]."""
    if isinstance(call, LaneCall):
        return call.attend(query, layer, scaling)
    kv = gather.read("own", layer, call.blocks, query.dtype)
    if isinstance(call, PrefillCall):
        return _prefill(call, query, kv, scaling)
    query = query[:, :, call.rows]
    if call.stale is not None:
        kv.index_fill_(2, call.stale, 0)
    if len(call.shared):
        shared = gather.read("shared", layer, call.shared, query.dtype)
        return _decode_behind(call, query, shared, kv, scaling)
    return _decode(call, query, kv, scaling)


def _prefill(call: PrefillCall, query: torch.Tensor, kv: torch.Tensor, scaling: float | None) -> torch.Tensor:
    kv[:, :, call.num_tokens :] = 0
    key, value = kv[:, None]
    if len(call.tiles) == 1:
        return _tile(call.tiles[0], query, key, value, scaling)
    return torch.cat([_tile(tile, query, key, value, scaling) for tile in call.tiles], dim=1)


def _tile(
    tile: Tile, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    query = query[:, :, tile.rows]
    num_rows, padding = query.shape[2], tile.mask.shape[0] - query.shape[2]
    if padding:
        query = F.pad(query, (0, 0, 0, padding))
    return _sdpa(tile, query, key, value, scaling)[:, :, :num_rows].transpose(1, 2)


def _by_kv_head(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[1, heads, N, head_dim] as [kv_heads, N, heads of one KV head, head_dim].

    Query heads of one KV head become query rows: each key is read once, not once a head.
    """
    return query[0].reshape(kv_heads, -1, *query.shape[2:]).transpose(1, 2)


def _decode(call: DecodeCall, query: torch.Tensor, kv: torch.Tensor, scaling: float | None) -> torch.Tensor:
    num_heads, num_seqs, head_dim = query.shape[1:]
    grouped = _by_kv_head(query, kv.shape[1]).transpose(0, 1)
    key, value = kv.unflatten(2, (num_seqs, -1))[:, :, :, call.kv].transpose(1, 2)
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=call.mask, scale=scaling)
    return out.reshape(1, num_seqs, num_heads, head_dim)


def _decode_behind(
    call: DecodeCall, query: torch.Tensor, shared: torch.Tensor, kv: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of several sequences behind blocks that they share, over which their rows are one matrix.

    The idea is Hydragen's (Juravsky et al., 2024), with one softmax over the scores of both parts.
    """
    assert call.mask is not None, "only several sequences share"
    num_heads, num_seqs, head_dim = query.shape[1:]
    grouped = _by_kv_head(query, kv.shape[1]) * (head_dim**-0.5 if scaling is None else scaling)
    key, value = kv.unflatten(2, (num_seqs, -1))
    before = _scores(grouped.flatten(1, 2), shared[0]).view(*grouped.shape[:3], -1)
    behind = _scores(grouped, key) + call.mask[:, 0]
    weights = torch.cat([before, behind], dim=-1).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    before, behind = weights[..., : before.shape[-1]], weights[..., before.shape[-1] :]
    out: torch.Tensor = (before.flatten(1, 2) @ shared[1]).view(grouped.shape) + behind @ value
    return out.transpose(0, 1).reshape(1, num_seqs, num_heads, head_dim)


def _scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Float32 products of each query with each key, [..., queries, keys], of [..., queries, dim] and [..., keys, dim].

    In float16 a product may be infinite, in bfloat16 it has two to three digits: too few to take an exponent of.
    """
    if query.device.type == "cuda" and query.dtype != torch.float32:
        flat = torch.bmm(query.flatten(0, -3), key.flatten(0, -3).mT, out_dtype=torch.float32)
        return flat.view(*query.shape[:-1], -1)
    return query.float() @ key.float().mT


def _sdpa(
    tile: Tile, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    key, value = key[:, :, tile.kv], value[:, :, tile.kv]
    if query.device.type != "cpu":
        # Only the CPU kernel takes grouped heads together with a mask; elsewhere torch falls back to a slow one.
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=tile.mask, scale=scaling, enable_gqa=grouped
    )
