"""A transformers model that computes over the block pool."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from kvstore.block import BlockLayout
from kvstore.collector import paused

from . import attention
from .activation import align_activations
from .batch import Batch, build_batch
from .checkpoint import NotLoaded, check_way_to_hub, checked_place, gguf_at, why_not_loaded
from .chunk import Chunk
from .convert import Tell, converted
from .decoder import Decoder
from .demo_model import DEMO, demo_model_dir
from .dtypes import torch_dtype
from .flashinfer import FlashInfer
from .out_of_memory import OutOfMemory, memory_for
from .packed import packing
from .pool import DevicePool
from .step_size import StepSize
from .supported import NotServed, Shape, length_limit, shape_of

_DEMO_SHAPE: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


class Model:
    """One set of weights on one device, its facts, and its forward over a DevicePool.

    Read-only once built, save that `packing` changes where its weights lie. `forward` may be called from one thread at a time.

    name: as the user named it.   source: directory of the weights, None for weights made in memory.
    shape: what its config says of it.   windows: the sliding windows that its layers have, None for none at all.
    made_by: facts that say which bits the weights are, for weights made in memory and not changed since of which that is
        known; else None.
    max_len: the most tokens of prompt and reply together.   eos_ids: the tokens that end a reply, maybe none.
    tokenizer: transformers' own, or None.   hf: the transformers model.
    """

    def __init__(
        self,
        hf: Any,
        *,
        name: str,
        source: Path | None = None,
        made_by: dict[str, str] | None = None,
        tokenizer: Any = None,
        max_model_len: int | None = None,
    ) -> None:
        self.shape = shape = shape_of(hf.config.to_dict())
        self.max_len = length_limit(shape, max_model_len)
        attention.register()
        hf.set_attn_implementation(attention.NAME)
        align_activations(hf, shape.activation)
        self.hf = hf.eval()
        self.decoder: Decoder | None = None
        """What computes it, once it is packed, if it is of the kind; else transformers do."""
        self.name = name
        self.source = source
        self.made_by = made_by
        self.tokenizer = tokenizer
        self.device = torch.device(hf.device)
        self.dtype: torch.dtype = hf.dtype
        self.architecture = type(hf).__name__
        self.num_layers = shape.num_layers
        self.vocab_size = shape.vocab_size
        self.windows = tuple(dict.fromkeys(shape.windows))
        self.eos_ids = _eos_ids(hf, tokenizer)

    @contextmanager
    def packing(self, stored: torch.dtype | None = None) -> Iterator[None]:
        """Lay the weights out as this CPU's matrix products read them, on whose speed and last bits it has a part.

        It goes on beside what is done within the context, which must not compute, and is done at its end. `stored`: the dtype of
        the pool that will be computed over, as far as it is known.
        """
        with packing(self.hf, stored) as decoder:
            yield
        self.decoder = self.decoder or decoder

    def layout(self, kv_dtype: str, block_tokens: int) -> BlockLayout:
        """The layout of this model's blocks."""
        return self.shape.layout(kv_dtype, block_tokens)

    def batch(
        self,
        chunks: Sequence[Chunk],
        pool: DevicePool,
        *,
        deterministic: bool = False,
        kernels: FlashInfer | None = None,
    ) -> Batch:
        """Pack chunks for `forward`; see build_batch."""
        return build_batch(
            chunks,
            pool,
            dtype=self.dtype,
            deterministic=deterministic,
            windows=self.windows,
            kernels=kernels,
        )

    @torch.inference_mode()
    def forward(
        self, batch: Batch, pool: DevicePool, before_layer: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """Compute a batch: its rows' KV goes to the pool, the wanted rows' logits come back.

        `before_layer` is called with the number of each layer before its attention reads the pool, or writes to it;
        None where nothing is to be waited for.

        Returns float32 [wanted rows, vocab], on the model's device, in the order of the batch's chunks; no rows where
        none was wanted. Blocks on the CPU; on CUDA it returns once the work is queued on the current stream.
        """
        if self.decoder is not None:
            return self.decoder.forward(batch, pool, before_layer)
        out = self.hf(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.logit_rows,
            paged=attention.PagedKV(batch, pool, before_layer or (lambda _: None)),
        )
        logits: torch.Tensor = out.logits[0, : batch.num_logits].float()
        return logits

    def warm_up(
        self,
        pool: DevicePool,
        size: StepSize | None = None,
        *,
        deterministic: bool = False,
        kernels: FlashInfer | None = None,
    ) -> torch.Tensor:
        """Run every kind of call once, so that no request pays for first uses; only the scratch slot is written to.

        size: of the step, so that its memory can be measured; None is as small as it can be. Returns the logits, as
        `forward` does. Raises ValueError where the model's attention needs what is not implemented.
        """
        block_tokens = pool.layout.block_tokens
        least = StepSize(prompt_tokens=block_tokens + 1, context_tokens=block_tokens, num_seqs=4)

        def run(chunks: Sequence[Chunk]) -> torch.Tensor:
            return self.forward(self.batch(chunks, pool, deterministic=deterministic, kernels=kernels), pool)

        if size is None:
            return run(least.chunks(pool))
        run(size.chunks(pool))  # decodes that share and decodes that do not take memory for different things
        return run(size.chunks(pool, apart=True))


def load_model(
    name_or_dir: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    max_model_len: int | None = None,
    cache_dir: Path | None = None,
    progress: Tell | None = None,
    shape_known: Callable[[Shape], None] = lambda _: None,
) -> Model:
    """Load "demo", a Hugging Face directory, a GGUF file or a directory with one, or a name on the hub.

    dtype: of weights and computing. max_model_len: None is the model's own limit. cache_dir: where "demo" and GGUF files
    are converted to, once; None is ~/.cache/kvtide. progress: told, in sentences, of what takes long. shape_known: told what
    the config says before weights are read, which takes longer. Raises ValueError, with what to do, for a model that is not
    served, for one that is not to be found or not all there, and for weights that do not fit into memory (OutOfMemory).
    """
    name = str(name_or_dir)
    place = _place(name_or_dir, cache_dir, progress)
    with memory_for(f"the weights of {name!r}", f"use a smaller dtype (now {dtype}) or a smaller model"):
        hf = _load_weights(place, device=device, dtype=dtype, shape_known=shape_known)
    source = place if isinstance(place, Path) else _hub_dir(hf, name)
    return Model(hf, name=name, source=source, tokenizer=_load_tokenizer(place), max_model_len=max_model_len)


def random_model(
    config: Any = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    max_model_len: int | None = None,
    min_len: int | None = None,
) -> Model:
    """A model with random weights and no tokenizer: for tests and measurements.

    config: a transformers config; None has the demo model's shape. The same seed gives the same weights; on CUDA, where
    they are drawn on the device, those of the same kind of device and torch only. min_len: where the config's own limit
    in tokens is lower, it is raised to this; the config given is left as it is.
    """
    from transformers import LlamaConfig

    config = LlamaConfig(**_DEMO_SHAPE) if config is None else copy.deepcopy(config)
    config.max_position_embeddings = max(config.max_position_embeddings, min_len or 0)
    name = f"random-{seed}"
    if torch.device(device).type == "cpu":
        hf = draw(config, seed, "cpu", torch.float32).to(dtype=torch_dtype(dtype))
        return Model(hf, name=name, max_model_len=max_model_len)
    # Eight billion weights are minutes of drawing and 32 GB in float32 on a CPU, and seconds where they are needed.
    hf = draw(config, seed, device, torch_dtype(dtype))
    return Model(hf, name=name, made_by=recipe(seed, torch.device(device)), max_model_len=max_model_len)


def draw(config: Any, seed: int, device: str, dtype: torch.dtype) -> Any:
    """A transformers model whose weights come from the device's own generator, which is left as it was."""
    from transformers import AutoModelForCausalLM

    forked = [] if device == "cpu" else [device]
    with torch.random.fork_rng(devices=forked), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def recipe(seed: int, device: torch.device) -> dict[str, str]:
    """What the bits of weights drawn on a GPU follow from, besides the config and the dtype."""
    return {
        "seed": str(seed),
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _place(name_or_dir: str | Path, cache_dir: Path | None, progress: Tell | None) -> Path | str:
    """The directory to load, all there as far as can be seen, or a name on the hub."""
    if str(name_or_dir) == DEMO:
        return demo_model_dir(cache_dir, progress)
    place = checked_place(name_or_dir)
    if place is None:
        return str(name_or_dir)
    gguf = gguf_at(place)
    return place if gguf is None else converted(gguf, cache_dir, progress)


def _load_weights(place: str | Path, *, device: str, dtype: str, shape_known: Callable[[Shape], None]) -> Any:
    from transformers import PreTrainedConfig

    try:
        if isinstance(place, str):
            check_way_to_hub(place)
        stated, _ = PreTrainedConfig.get_config_dict(place)
        # before transformers complains in words of its own, before weights are downloaded, and before seconds of imports
        shape_known(shape_of(stated))
        from transformers import AutoConfig, AutoModelForCausalLM

        # with output_loading_info it returns two things, which its types do not say
        auto: Any = AutoModelForCausalLM
        config = AutoConfig.from_pretrained(place)
        with _no_progress_bar():
            hf, info = auto.from_pretrained(
                place, config=config, dtype=torch_dtype(dtype), output_loading_info=True
            )
    except (NotServed, NotLoaded, OutOfMemory):
        raise
    except (OSError, ValueError) as error:
        raise why_not_loaded(place, error) from error
    if missing := sorted(info["missing_keys"]):
        raise NotLoaded(place, f"its files lack {len(missing)} weights, such as {missing[0]}")
    return hf.to(device)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar for what takes a fraction of a second."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _load_tokenizer(place: str | Path) -> Any:
    """The tokenizer, or None for a directory without one: such a model takes token ids."""
    from transformers import AutoTokenizer

    if Path(place).is_dir() and not (Path(place) / "tokenizer_config.json").exists():
        return None
    with paused():  # it is made of a file of JSON: objects by the ten thousand, of which next to none stay
        return AutoTokenizer.from_pretrained(place)


def _hub_dir(hf: Any, name: str) -> Path | None:
    """The local snapshot that transformers loaded a hub model from."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=getattr(hf.config, "_commit_hash", None))
    return Path(found).parent if isinstance(found, str) else None


def _eos_ids(hf: Any, tokenizer: Any) -> frozenset[int]:
    """The reply-ending tokens: the generation config's, else the model's, and the tokenizer's own."""
    stated = hf.generation_config.eos_token_id if hf.generation_config is not None else None
    stated = hf.config.eos_token_id if stated is None else stated
    ids = [] if stated is None else [stated] if isinstance(stated, int) else list(stated)
    own = getattr(tokenizer, "eos_token_id", None)
    return frozenset(ids if own is None else [*ids, own])
