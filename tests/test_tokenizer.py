"""Tokens are exact: bytes in, bytes out, whatever the text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from interp.errors import InputError
from interp.text.vocabularies import END_OF_TEXT


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_bytes_of_tokens_are_the_texts_bytes(toy_tokenizer, text) -> None:
    ids = toy_tokenizer.encode(text)
    assert b"".join(toy_tokenizer.token_bytes(token) for token in ids) == text.encode()
    assert toy_tokenizer.to_string(ids) == text
    assert all(
        shown.isprintable() or not shown.isascii() or shown.isspace() or len(shown)
        for shown in toy_tokenizer.to_str_tokens(ids)
    )


def test_equals_transformers(toy_tokenizer) -> None:
    twin = PreTrainedTokenizerFast(tokenizer_object=toy_tokenizer.backend)
    for text in ("The cat sat.", " leading", "naïve 🙂\n\ttab", f"a{END_OF_TEXT}b"):
        assert toy_tokenizer.encode(text) == twin(text)["input_ids"]


def test_partial_characters_are_shown_as_hex(toy_tokenizer) -> None:
    shown = toy_tokenizer.to_str_tokens("🙂", prepend_bos=False)
    assert shown == ["\\xf0", "\\x9f", "\\x99", "\\x82"]


def test_bos_is_put_in_front(toy_tokenizer) -> None:
    assert toy_tokenizer.to_str_tokens("The")[0] == END_OF_TEXT
    assert toy_tokenizer.to_tokens("The", prepend_bos=False).shape[1] == toy_tokenizer.to_tokens("The").shape[1] - 1


def test_single_token(toy_tokenizer) -> None:
    assert toy_tokenizer.to_string([toy_tokenizer.to_single_token(" cat")]) == " cat"
    with pytest.raises(InputError, match="tokens: 'z' \\+ 'e'"):
        toy_tokenizer.to_single_token("zebra")


@pytest.mark.parametrize("text", ["", [], ["a", ""]])
def test_empty_text_is_refused(toy_tokenizer, text) -> None:
    with pytest.raises(InputError, match="empty"):
        toy_tokenizer.to_tokens(text)


def test_unequal_lengths_need_a_batch(toy_tokenizer) -> None:
    with pytest.raises(InputError, match="to_batch"):
        toy_tokenizer.to_tokens(["The cat", "The cat sat on the mat"])
    tokens, mask = toy_tokenizer.to_batch(["The cat", "The cat sat on the mat"])
    assert tokens.shape == mask.shape
    assert mask[1].all()
    assert int(mask[0].sum()) == len(toy_tokenizer.encode("The cat")) + 1
    assert torch.equal(tokens[0][mask[0].bool()], toy_tokenizer.to_tokens("The cat")[0])


def test_lone_surrogates_are_refused(toy_tokenizer) -> None:
    with pytest.raises(InputError, match="surrogate"):
        toy_tokenizer.encode("a\ud800b")


def test_no_tokenizer_is_said(toy_gpt) -> None:
    from conftest import make_gpt

    with pytest.raises(InputError, match="no tokenizer"):
        make_gpt().to_tokens("The cat")


def test_truncation_and_padding_saved_with_a_tokenizer_are_not_applied(toy_tokenizer, tmp_path) -> None:
    from tokenizers import Tokenizer as Backend

    from interp.text.tokenizer import Tokenizer

    backend = Backend.from_str(toy_tokenizer.backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "The cat sat on the mat. The dog sat on the log."
    assert Tokenizer.from_directory(tmp_path).encode(text) == toy_tokenizer.encode(text)
