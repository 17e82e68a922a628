"""Digests: each property quotes the sentence of OCI image-spec, descriptor.md that it tests."""

import hashlib
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exporter.digest import HEX_LENGTHS, Digest

ALGORITHMS = st.sampled_from(sorted(HEX_LENGTHS))
GOOD = "sha256:" + "0123456789abcdef" * 4


def is_digest(text: str) -> bool:
    """Decide by the sentences of the spec, without a regular expression."""
    algorithm, _, encoded = text.partition(":")
    return len(encoded) == HEX_LENGTHS.get(algorithm) and set(encoded) <= set("0123456789abcdef")


@given(ALGORITHMS, st.data())
def test_encoded_must_match_lower_case_hex_of_the_length_of_its_algorithm(
    algorithm: str, data: st.DataObject
) -> None:
    # "Note that [A-F] MUST NOT be used here", "the encoded portion MUST match /[a-f0-9]{64}/".
    length = HEX_LENGTHS[algorithm]
    text = f"{algorithm}:{data.draw(st.text('0123456789abcdef', min_size=length, max_size=length))}"
    digest = Digest.parse(text)
    assert (digest, digest.algorithm, digest.hex) == (text, algorithm, text.partition(":")[2])


@given(st.text() | st.from_regex(r"sha(256|384|512):[0-9a-fA-F]{0,130}\n?"))
@example("sha256:" + "0" * 128)
@example("sha512:" + "0" * 64)
def test_text_is_a_digest_exactly_if_the_spec_says_so(text: str) -> None:
    try:
        parsed = Digest.parse(text) == text
    except ValueError:
        parsed = False
    assert parsed == is_digest(text)


@given(st.integers(0, len(GOOD)), st.characters(exclude_characters=string.hexdigits))
@example(len(GOOD), "\n")
@example(0, " ")
@example(0, "-")
def test_one_foreign_character_anywhere_is_refused(position: int, character: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        Digest.parse(GOOD[:position] + character + GOOD[position:])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        GOOD.upper(),
        GOOD.replace("f", "F"),
        Digest.of(b"", algorithm="sha384").replace("f", "F"),
        Digest.of(b"", algorithm="sha512").replace("f", "F"),
        GOOD.replace("sha256", "SHA256"),
        GOOD.replace("sha256", "md5"),
        GOOD.replace("sha256", "sha256+b64"),
        GOOD[:-1],
        GOOD + "0",
        GOOD[:-1] + "٣",  # a decimal digit to str.isdigit and to \d
        GOOD[:-1] + "\udcff",  # what os.listdir makes of a byte that is not UTF-8
        GOOD + "\x00",
        f"{GOOD}\n{GOOD}",
        "sha256:" + "../" * 21 + "a",
    ],
)
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        Digest.parse(text)


def test_the_refusal_quotes_at_most_80_characters() -> None:
    with pytest.raises(ValueError, match="not a digest") as caught:
        Digest.parse("x" * 1_000_000)
    assert str(caught.value) == f"not a digest: {'x' * 80!r}"


@given(st.binary(), ALGORITHMS)
def test_the_digest_of_content_parses_and_verifies(content: bytes, algorithm: str) -> None:
    # "The digest property ... enables content to be independently verified".
    digest = Digest.parse(Digest.of(content, algorithm=algorithm))
    assert digest.hex == hashlib.new(algorithm, content).hexdigest()
