"""Layouts, namespaces and keys."""

import hashlib

import pytest

from kvstore import KEY_BYTES, BlockLayout, Namespace, chain_key


def test_a_layout_counts_its_bytes():
    layout = BlockLayout(num_layers=30, num_kv_heads=3, head_dim=64, dtype="bfloat16", block_tokens=16)
    assert layout.shape == (30, 2, 16, 3, 64)
    assert layout.itemsize == 2
    assert layout.token_bytes == 23_040
    assert layout.block_bytes == 368_640
    assert layout.token_id_bytes == 64


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"num_layers": 0}, {"block_tokens": -1}])
def test_a_layout_refuses_what_is_no_layout(wrong):
    good = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 1, "dtype": "float32"}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BlockLayout(**{**good, **wrong})


def test_a_namespace_does_not_depend_on_the_order_of_its_facts():
    one, other = Namespace.of({"a": "1", "b": "2"}), Namespace.of({"b": "2", "a": "1"})
    assert one == other
    assert one.digest == other.digest
    assert len(one.digest) == KEY_BYTES
    assert str(one) == one.digest.hex()[:12]


def test_any_change_of_the_facts_is_another_namespace():
    """Also where the characters are the same and only the borders between them differ."""
    facts = (
        {},
        {"a": ""},
        {"": "a"},
        {"a": "b"},
        {"a": "b", "c": ""},
        {"ab": ""},
        {'a","b': ""},
        {"a": 'b","c'},
    )
    spaces = [Namespace.of(fact) for fact in facts]
    assert len({space.digest for space in spaces}) == len(facts)
    assert len({space.root_key for space in spaces}) == len(facts)
    assert not {space.root_key for space in spaces} & {space.digest for space in spaces}


def test_a_namespace_refuses_ambiguous_fields():
    with pytest.raises(ValueError, match="sorted"):
        Namespace((("b", "1"), ("a", "2")))
    with pytest.raises(ValueError, match="sorted"):
        Namespace((("a", "1"), ("a", "2")))
    with pytest.raises(ValueError, match="strings"):
        Namespace.of({"layers": 3})


def test_keys_are_chained_and_documented():
    """The formula is part of the format: another program must be able to compute keys."""
    root = Namespace.of({"model": "tiny"}).root_key
    first = chain_key(root, b"\1\0\0\0")
    assert first == hashlib.blake2b(root + b"\1\0\0\0", digest_size=32).digest()
    assert chain_key(first, b"\1\0\0\0") != first
    assert root.hex() == "fa8e69f07054ab6d0d867f89672142715a1dd90ea224d1c4df43f490dc6e2f28"
