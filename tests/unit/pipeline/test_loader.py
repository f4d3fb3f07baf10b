"""The YAML that operators and API users write: what it means, what is refused, and where the fault is said to stand."""

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nommerd.errors import ConfigError, InputError, ManyErrors, NommerdError
from nommerd.pipeline.loader import BYTES_MAX, load_yaml, plain_scalar
from nommerd.pipeline.tree import DEPTH_MAX, FAULTS_MAX, Node, load_value, walk

TEXTS = [
    "NO", "no", "on", "off", "yes", "y", "1:30", "16:9", "1:02:03.5", "017", "00", "-08", "2026-01-31",
    "2026-01-31T10:00:00Z", "1_000", "0b11", "0o18", "0xZZ", "1e", "+", ".", "1.2.3", "2500k", "10%", "=", "tRue",
    "nULL", "infinity", "nan",
]
VALUES = [
    ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("0", 0), ("-0", 0), ("+7", 7), ("720", 720),
    ("0o17", 15), ("0x1F", 31), ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("-1e3", -1000.0), ("29.97", 29.97),
]


def faults(text: str | bytes, file: str = "f.yaml") -> list[NommerdError]:
    with pytest.raises(NommerdError) as caught:
        load_yaml(text, file)
    error = caught.value
    return list(error.errors) if isinstance(error, ManyErrors) else [error]


def places(text: str | bytes) -> list[str | None]:
    return [error.place for error in faults(text)]


@pytest.mark.parametrize("text", TEXTS)
def test_what_the_core_schema_does_not_know_stays_the_text_the_operator_wrote(text):
    assert load_yaml(f"a: {text}\n", "f").plain() == {"a": text}


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_core_scalars_are_read_with_their_type(text, value):
    read = load_yaml(f"a: {text}\n", "f").plain()["a"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ['"720"', "'720'", '"true"', "'~'", '""', "'017'"])
def test_quoted_scalars_are_text(text):
    assert load_yaml(f"a: {text}\n", "f").plain() == {"a": text[1:-1]}


def test_keys_are_text_whatever_they_look_like():
    assert load_yaml("1: a\ntrue: b\nno: c\n1.5: d\n", "f").plain() == {"1": "a", "true": "b", "no": "c", "1.5": "d"}


@pytest.mark.parametrize("text", [".inf", "-.INF", ".nan", ".NaN", "1e999", "-1e400", "9223372036854775808", "1" * 5000,
                                  "0x" + "f" * 5000, "0o" + "7" * 100])
def test_numbers_that_are_not_finite_or_out_of_range_are_refused_where_they_stand(text):
    [error] = faults(f"a: 1\nb: {text}\n")
    assert error.place == "f.yaml:2:4"
    assert error.code == "recipe.bad_yaml"
    assert len(error.message) < 120


def test_every_node_knows_its_line_and_column_and_that_of_its_key():
    root = load_yaml("a:\n  - b\n  - {c: [1,\n        2]}\n", "dir/x.yaml")
    node = root.get("a", 1, "c", 1)
    assert node is not None
    assert (node.value, node.place) == (2, "dir/x.yaml:4:9")
    inner = root.get("a", 1, "c")
    assert inner is not None
    assert (inner.place, inner.key_place) == ("dir/x.yaml:3:9", "dir/x.yaml:3:6")
    assert root.get("a", 2) is None
    assert root.get("a", "b") is None


def test_columns_count_characters_not_bytes():
    assert places("é: ü\nñandú: *x\n") == ["f.yaml:2:8"]


@pytest.mark.parametrize(("text", "place", "word"), [
    ("a: &x 1\n", "f.yaml:1:4", "anchor"),
    ("a: 1\nb: *x\n", "f.yaml:2:4", "alias"),
    ("a: {<<: {b: 1}}\n", "f.yaml:1:5", "merge key"),
    ("a: !!python/object/apply:os.system [id]\n", "f.yaml:1:4", "tag"),
    ("a: !x\n", "f.yaml:1:4", "tag"),
    ("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml:4:3", "second time"),
    ("a: 1\n---\nb: 1\n", "f.yaml:2:1", "second document"),
    ("%TAG ! tag:x,2000:\n---\na: 1\n", "f.yaml:1:1", "TAG"),
    ("? [a, b]\n: 1\n", "f.yaml:1:3", "as a key"),
    ("? {a: b}\n: [1, {c: 2}]\nd: 1\n", "f.yaml:1:3", "as a key"),
    ("{? : 1}\n", "f.yaml:1:4", "without a name"),
    ("a: [1, 2\nb: 3\n", "f.yaml:2:2", "expected"),
    ("a: b: c\n", "f.yaml:1:5", "mapping values"),
    ("a:\n\t- b\n", "f.yaml:2:1", "token"),
    ("a: 'b\n", "f.yaml:2:1", "quoted"),
    ('a: "\\UFFFFFFFF"\n', "f.yaml:1:7", "escape"),
    ('a: "x\\0y"\n', "f.yaml:1:4", "control character"),
    ("a: x\x07\n", "f.yaml:1:5", "U+0007"),
    ("a: x\x00\n", "f.yaml:1:5", "U+0000"),
    ("", "f.yaml:1:1", "empty"),
    ("# nothing\n", "f.yaml:1:1", "empty"),
    (b"a: 1\nb: x\xff\n", "f.yaml:2:5", "UTF-8"),
    ("a: 1".encode("utf-16"), "f.yaml:1:1", "UTF-8"),
    ("a: \ud800\n", "f.yaml:1:4", "UTF-8"),
])
def test_what_is_not_read_is_refused_with_its_place(text, place, word):
    found = faults(text)
    assert found[0].place == place
    assert word in str(found[0])


def test_all_faults_of_a_file_are_told_at_once_from_top_to_bottom():
    text = "a: &x 1\nb: *x\nb: 2\nc: .inf\nd: !!int 3\n"
    assert places(text) == ["f.yaml:1:4", "f.yaml:2:4", "f.yaml:3:1", "f.yaml:4:4", "f.yaml:5:4"]


def test_the_number_of_faults_told_is_bounded():
    assert len(faults("".join(f"a{n}: .inf\n" for n in range(1000)))) == FAULTS_MAX


def test_a_byte_order_mark_is_skipped():
    assert load_yaml(b"\xef\xbb\xbfa: 1\n", "f").plain() == {"a": 1}


def test_a_document_of_the_largest_size_is_read_and_a_larger_one_refused():
    body = "a: 1\n#"
    assert load_yaml(body + "x" * (BYTES_MAX - len(body)), "f").plain() == {"a": 1}
    assert "More than" in faults(body + "x" * (BYTES_MAX + 1 - len(body)))[0].message
    assert "More than" in faults("é" * (BYTES_MAX // 2 + 1))[0].message


def test_nesting_is_bounded_and_a_flood_of_brackets_is_refused_quickly():
    assert load_yaml("[" * DEPTH_MAX + "]" * DEPTH_MAX, "f")
    begin = time.monotonic()
    for opening in ("[", "{", "- ", "? ", "[{a: "):
        assert "deep" in faults(opening * (60_000 // len(opening)))[-1].message
    assert time.monotonic() - begin < 5


def test_a_merge_key_bomb_is_refused_at_once():
    lines = ["a0: &a0 {k: v}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)]
    begin = time.monotonic()
    assert faults("\n".join(lines))
    assert time.monotonic() - begin < 2


def test_the_caller_says_whose_fault_it_is():
    with pytest.raises(InputError) as caught:
        load_yaml("a: [", "body", InputError)
    assert caught.value.code == "recipe.bad_yaml"
    with pytest.raises(ConfigError) as config:
        load_yaml("a: [", "nommerd.yaml", family="config")
    assert config.value.code == "config.bad_yaml"


def test_parsed_json_becomes_a_tree_with_paths_for_places():
    node = load_value({"stages": ["fetch", {"ffmpeg": {"passes": 2}}]})
    found = node.get("stages", 1, "ffmpeg", "passes")
    assert found is not None
    assert (found.value, found.place) == (2, "stages[1].ffmpeg.passes")


@pytest.mark.parametrize("value", [
    float("nan"), float("inf"), 2**63 + 1, 10**400, "a\x00b", "\ud800", {"a\x01": 1}, {"a": b"x"},
    json.loads("[" * 80 + "]" * 80),
])
def test_json_values_out_of_bounds_are_refused(value):
    with pytest.raises(InputError):
        load_value({"x": value}, InputError)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2**62, 2**62) | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff\ufeff"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=8), inner, max_size=4),
    max_leaves=20)


@settings(max_examples=150, deadline=None)
@given(plain_values)
def test_any_json_document_reads_as_itself(value):
    text = json.dumps({"root": value}, ensure_ascii=False)
    assert load_yaml(text, "f").plain() == {"root": value} == load_value({"root": value}).plain()


PIECES = [
    "a", "b: ", "- ", "? ", ": ", "[", "]", "{", "}", ",", "\n", "\n  ", "\t", "&x ", "*x", "!!str ", "!", "<<: ", "'", '"',
    "|", ">-", "#", "%YAML 1.1\n", "%TAG ! x\n", "---\n", "...\n", "\\", "\\x41", "\\UFFFFFFFF", "~", "1e999", ".nan", "0",
    "@", "`", "é", "\u2028", "\x85", "\ufeff", "\x00", "\x7f", "\ud800", "😀", "<<", "=", "true", "$x",
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=200) | st.binary(max_size=200))
@example("? ? ? a\n: b\n: c\n")
@example("{*a : [*b, {*c : d}]}")
@example("[? a : b, ? [c] : d]")
@example("&a [&b {&c d: *e}]")
def test_any_bytes_give_a_tree_of_plain_values_or_a_clean_error_with_a_place(text):
    try:
        root = load_yaml(text, "f.yaml")
    except ConfigError as error:
        assert error.place is not None and error.place.startswith("f.yaml:")
        assert len(error.message) < 1000
    except ManyErrors as many:
        assert all(isinstance(error, ConfigError) and error.place for error in many.errors)
    else:
        for _, node in walk(root):
            assert isinstance(node, Node)
            assert node.value is None or type(node.value) in (str, int, float, bool, dict, list)
        json.dumps(root.plain(), allow_nan=False)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("0123456789+-.eExXoO_:aAfFnNiI~"), max_size=30))
def test_a_plain_scalar_is_a_bounded_number_a_word_or_itself(text):
    try:
        value = plain_scalar(text)
    except ValueError:
        return
    assert value is None or isinstance(value, bool | int | float) or value == text
