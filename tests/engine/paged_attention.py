"""FlashInfer's one class that is used here, computed on a CPU from what its documentation says, in float32."""

from collections.abc import Sequence

import torch


class PagedAttention:
    """Stands in for BatchPrefillWithPagedKVCacheWrapper where there is no GPU; refuses what that would refuse.

    Only the keywords that the real one has too, by its names. Subclasses in tests are wrong on purpose.
    """

    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype == torch.uint8
        assert float_workspace_buffer.data_ptr() % 16 == 0
        assert float_workspace_buffer.numel() >= 128 << 20, "less than its documentation recommends"
        assert kv_layout == "NHD"
        self.plans = self.runs = 0
        self._is_planned = False

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        """As the real one, for what is used of it. Lengths follow from the indptr arrays and the last pages."""
        arrays = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(array.dtype == torch.int32 and array.is_contiguous() for array in arrays)
        num_sequences = len(qo_indptr) - 1
        assert num_sequences > 0
        assert len(paged_kv_indptr) == num_sequences + 1
        assert len(paged_kv_last_page_len) == num_sequences
        assert qo_indptr[0] == paged_kv_indptr[0] == 0
        assert (qo_indptr.diff() > 0).all(), "a sequence without rows"
        assert (paged_kv_indptr.diff() > 0).all(), "a sequence without pages"
        assert len(paged_kv_indices) == paged_kv_indptr[-1]
        assert ((paged_kv_last_page_len >= 1) & (paged_kv_last_page_len <= page_size)).all()
        assert num_qo_heads % num_kv_heads == 0
        assert head_dim_qk in (64, 128, 256)
        assert q_data_type in (torch.float16, torch.bfloat16)
        assert window_left >= -1
        self.plans += 1
        self._is_planned = True
        self._rows = qo_indptr.tolist()
        self._pages = [
            indices.long()
            for indices in paged_kv_indices.clone().tensor_split(paged_kv_indptr[1:-1].long().cpu())
        ]
        self._last = paged_kv_last_page_len.tolist()
        self._heads = (num_qo_heads, num_kv_heads, head_dim_qk)
        self._page_size = page_size
        self._causal, self._window_left = causal, window_left
        self._scale = head_dim_qk**-0.5 if sm_scale is None else sm_scale
        self._dtypes = (q_data_type, q_data_type if kv_data_type is None else kv_data_type)

    def run(self, q: torch.Tensor, paged_kv_cache: torch.Tensor) -> torch.Tensor:
        """q: [rows, heads, head_dim]; paged_kv_cache: [pages, 2, page_size, kv_heads, head_dim], any page stride."""
        assert self._is_planned
        num_heads, num_kv_heads, head_dim = self._heads
        assert (q.dtype, paged_kv_cache.dtype) == self._dtypes
        assert q.shape == (self._rows[-1], num_heads, head_dim)
        assert q.stride(-1) == 1
        assert paged_kv_cache.shape[1:] == (2, self._page_size, num_kv_heads, head_dim)
        assert paged_kv_cache.stride()[2:] == (num_kv_heads * head_dim, head_dim, 1)
        self.runs += 1
        out = torch.zeros_like(q)
        for number, (begin, end) in enumerate(zip(self._rows, self._rows[1:], strict=False)):
            key, value = self.gathered(paged_kv_cache, self._pages[number], self._last[number])
            out[begin:end] = self.attention(q[begin:end], key, value)
        return out

    def gathered(
        self, paged_kv_cache: torch.Tensor, pages: torch.Tensor, last: int
    ) -> Sequence[torch.Tensor]:
        """Keys and values of one sequence, each [tokens, kv_heads, head_dim]."""
        num_tokens = (len(pages) - 1) * self._page_size + last
        kv = paged_kv_cache[pages].transpose(0, 1).flatten(1, 2)
        return tuple(kv[:, :num_tokens])

    def seen(self, num_rows: int, num_tokens: int) -> torch.Tensor:
        """Which tokens each row sees, [rows, tokens]: the last row's is the last token."""
        positions = torch.arange(num_tokens - num_rows, num_tokens)[:, None]
        tokens = torch.arange(num_tokens)[None]
        seen = tokens <= positions if self._causal else torch.ones(num_rows, num_tokens, dtype=torch.bool)
        return seen if self._window_left < 0 else seen & (positions - tokens <= self._window_left)

    def attention(self, q: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        group = q.shape[1] // key.shape[1]
        key, value = (kv.float().repeat_interleave(group, dim=1).transpose(0, 1) for kv in (key, value))
        scores = q.float().transpose(0, 1) @ key.mT * self._scale
        scores = scores.masked_fill(~self.seen(q.shape[0], key.shape[1]), float("-inf"))
        return (scores.softmax(-1) @ value).transpose(0, 1).to(q.dtype)
