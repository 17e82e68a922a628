"""Names: distribution/reference, regexp.go. The grammar is spelled out again by hand here."""

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exporter.digest import Digest
from exporter.reference import (
    Destination,
    ImageName,
    RepositoryName,
    parse_repository_name,
    parse_tag,
)

ALPHANUMERIC = string.ascii_lowercase + string.digits
WORDS = st.text(ALPHANUMERIC, min_size=1, max_size=6)
SEPARATORS = st.sampled_from([".", "_", "__", "-", "--", "-----"])
COMPONENTS = st.builds(
    lambda word, more: word + "".join(separator + other for separator, other in more),
    WORDS,
    st.lists(st.tuples(SEPARATORS, WORDS), max_size=2),
)
NAMES = st.lists(COMPONENTS, min_size=1, max_size=5).map("/".join)
TAGS = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=128).filter(
    lambda tag: tag[0] not in ".-"
)
DIGEST = Digest.of(b"")


def is_component(text: str) -> bool:
    """Decide by the comments of regexp.go: words, and one separator between any two of them."""
    words = re.split("[._-]+", text)
    between = re.findall("[._-]+", text)
    return all(word and set(word) <= set(ALPHANUMERIC) for word in words) and all(
        separator in {".", "_", "__"} or set(separator) == {"-"} for separator in between
    )


def is_name(text: str) -> bool:
    return len(text) <= 255 and all(map(is_component, text.split("/")))


@given(NAMES)
def test_every_name_that_the_grammar_makes_is_taken(name: str) -> None:
    # "alphanumeric [separator alphanumeric]*", joined by "/"
    assert parse_repository_name(name) == name


@given(st.text("ab0._-/A:@\n é", max_size=12) | st.text(max_size=12) | NAMES)
@example("a\n")
@example("a..b")
@example("a___b")
@example("a._b")
@example("٣")
def test_text_is_a_name_exactly_if_the_grammar_says_so(text: str) -> None:
    try:
        parsed = parse_repository_name(text) == text
    except ValueError:
        parsed = False
    assert parsed == is_name(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "-a", "a-", "_layers", "a/_b"),
        *("A", "a/B", "localhost:5000/foo", "a:b", "a@b", "a b", "a\n", "a\x00", "a\udcff", "é"),
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a repository name"):
        parse_repository_name(text)


def test_a_name_has_at_most_255_characters() -> None:
    # "NameTotalLengthMax is the maximum total number of characters in a repository name."
    parse_repository_name("a" * 255)
    with pytest.raises(ValueError, match="not a repository name"):
        parse_repository_name("a" * 256)


@given(TAGS)
def test_every_tag_that_the_grammar_makes_is_taken(tag: str) -> None:
    # "TagRegexp matches valid tag names": \w[\w.-]{0,127}, where \w is ASCII as in Go
    assert parse_tag(tag) == tag


@given(st.text("aZ9_.-:/\n é٣", max_size=5) | st.text(max_size=5))
@example("latest\n")
@example("\udcff")
@example("٣")
def test_text_is_a_tag_exactly_if_the_grammar_says_so(text: str) -> None:
    word = string.ascii_letters + string.digits + "_"
    expected = text != "" and text[0] in word and set(text) <= set(word + ".-")
    try:
        parsed = parse_tag(text) == text
    except ValueError:
        parsed = False
    assert parsed == expected


def test_a_tag_has_at_most_128_characters() -> None:
    parse_tag("a" * 128)
    with pytest.raises(ValueError, match="not a tag"):
        parse_tag("a" * 129)


@given(NAMES, TAGS | st.just(DIGEST))
def test_an_image_name_comes_back_from_its_text(repository: str, reference: str) -> None:
    expected = ImageName(
        RepositoryName(repository),
        reference if isinstance(reference, Digest) else parse_tag(reference),
    )
    assert ImageName.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["a", "a:", ":a", "a@sha256:00", f"a:b@{DIGEST}", f"@{DIGEST}", "a:b\n", "a:b:c", ""]
)
def test_what_is_no_image_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a |no tag"):
        ImageName.parse(text)


@pytest.mark.parametrize(
    ("text", "host", "prefix"),
    [
        ("harbor.example", "harbor.example", ""),
        ("docker://harbor.example:5000/", "harbor.example:5000", ""),
        ("localhost/a", "localhost", "a"),
        ("127.0.0.1:5000/mirror/old", "127.0.0.1:5000", "mirror/old"),
        ("[::1]:5000/a", "[::1]:5000", "a"),
        ("registry:5000", "registry:5000", ""),
    ],
)
def test_a_destination_is_a_host_and_a_prefix(text: str, host: str, prefix: str) -> None:
    assert Destination.parse(text) == Destination(host, prefix)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "docker://",
            "/a",
            "-h:1",
            "--flag",
            "http://h.example",
            "user@h.example",
            "h.example:",
        ),
        *(
            "h.example:x",
            "h.example:٣",
            "h.example\n",
            "h.example/A",
            "h.example/../a",
            "h.example/a:b",
        ),
        *("h.example//a", "é.example", "h.example:123456"),
    ],
)
def test_what_is_no_destination_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a "):
        Destination.parse(text)


def test_a_host_that_skopeo_would_take_for_a_repository_of_docker_io_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'library' needs a port .*docker\.io/library"):
        Destination.parse("library/alpine")


def test_a_destination_puts_its_prefix_before_a_name() -> None:
    name = RepositoryName("team/app")
    assert Destination.parse("h.example/old").repository(name) == "old/team/app"
    assert Destination.parse("h.example").repository(name) == "team/app"


def test_a_name_that_grows_too_long_at_the_destination_is_refused() -> None:
    with pytest.raises(ValueError, match="not a repository name"):
        Destination.parse("h.example/old").repository(RepositoryName("a" * 252))


@given(NAMES)
def test_a_destination_comes_back_from_its_text(prefix: str) -> None:
    destination = Destination("h.example:5000", prefix)
    assert Destination.parse(str(destination)) == destination
