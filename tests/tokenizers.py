"""A tokenizer without a model: a token for each byte, as byte-level BPE has before its merges."""

from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(chat_template: str = CHAT_TEMPLATE) -> Any:
    """All bytes, a few words, an end token, and a chat template: a `PreTrainedTokenizerFast`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġthe", "Ġstop", "END", "##"]
    vocab = {piece: number for number, piece in enumerate([*alphabet, *words, "<eos>"])}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")  # noqa: S106 - no password
    made.chat_template = chat_template
    return made
