"""Params: what each type takes, and how `$name` finds its way into settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nommerd.errors import NommerdError
from nommerd.pipeline.params import ParamSpec, accept, as_text, check_spec, expand, from_text, samples, substitute
from nommerd.pipeline.tree import Faults, load_value


def spec(**fields) -> ParamSpec:
    return ParamSpec.model_validate(fields, strict=False)


def fill(value, values, known=None):
    """The settings with values filled in, the faults as text, and the uses."""
    faults = Faults()
    names = frozenset(known if known is not None else values)
    node, uses = substitute(load_value(value), values, names, faults)
    return node.plain(), [str(error) for error in faults.errors], uses


@pytest.mark.parametrize(("kind", "good", "bad"), [
    ("integer", [0, -3, 720], [True, 1.0, "720", None, [1], 1.5]),
    ("number", [0, 1.5, -2], [True, "1.5", None, float("nan"), float("inf")]),
    ("string", ["", "a b", "é,:'"], [1, True, None, "a\nb", "a\x00", "x" * 1001, "\ud800"]),
    ("boolean", [True, False], [1, 0, "true", None, "yes"]),
    ("bitrate", ["2500k", "5M", "1.5M", "128000", 2_500_000],
    ["2500 k", "2500kbps", "5m", "5MB", "-1k", True, "k", "", None, 1]),
    ("duration", ["10s", "1:30", "250ms", "1:02:03.5", "90", 90, 1.5, "0s"],
    ["1:60", "10m", "1h", "-5s", True, "", "1:2:3:4", None, -1]),
])
def test_each_type_takes_its_own_values_as_they_are_and_no_others(kind, good, bad):
    one = spec(type=kind)
    for value in good:
        assert accept(one, value) is value
    for value in bad:
        with pytest.raises(ValueError, match=r"expected|must be|between"):
            accept(one, value)


def test_a_choice_is_taken_with_its_type():
    one = spec(type="choice", choices=["slow", "fast", 1, True])
    assert [accept(one, value) for value in ("slow", 1, True)] == ["slow", 1, True]
    for wrong in ("slwo", "1", 1.0, False, None):
        with pytest.raises(ValueError, match="expected slow, fast, 1 or true"):
            accept(one, wrong)
    with pytest.raises(ValueError, match="did you mean slow"):
        accept(one, "slwo")


@pytest.mark.parametrize(("fields", "low", "inside", "high"), [
    ({"type": "integer", "min": 16, "max": 7680}, 15, 16, 7681),
    ({"type": "number", "min": 0.5, "max": 2}, 0.4, 2, 2.1),
    ({"type": "bitrate", "min": "100k", "max": "5M"}, 99_999, "5000k", "5.1M"),
    ({"type": "duration", "min": "1s", "max": "1:00"}, "999ms", 60, "1:00.5"),
    ({"type": "string", "min": 1, "max": 3}, "", "abc", "abcd"),
])
def test_min_and_max_bound_a_value_in_its_own_unit(fields, low, inside, high):
    assert accept(spec(**fields), inside) == inside
    with pytest.raises(ValueError, match="at least"):
        accept(spec(**fields), low)
    with pytest.raises(ValueError, match="at most"):
        accept(spec(**fields), high)


@pytest.mark.parametrize(("fields", "text", "value"), [
    ({"type": "integer"}, "720", 720), ({"type": "integer"}, "-3", -3), ({"type": "number"}, "1.5", 1.5),
    ({"type": "number"}, "2", 2),
    ({"type": "boolean"}, "true", True), ({"type": "boolean"}, "false", False), ({"type": "string"}, "720", "720"),
    ({"type": "string"}, "true", "true"), ({"type": "bitrate"}, "2500k", "2500k"), ({"type": "bitrate"}, "2500000", 2_500_000),
    ({"type": "duration"}, "1:30", "1:30"), ({"type": "choice", "choices": [1, "a"]}, "1", 1),
    ({"type": "choice", "choices": [True, "a"]}, "true", True),
])
def test_a_text_from_the_command_line_becomes_the_params_type(fields, text, value):
    read = from_text(spec(**fields), text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(("kind", "text"), [("integer", "7.5"), ("integer", "x"), ("integer", "1" * 400), ("number", "nan"),
("number", "1e999"),
                                            ("boolean", "yes"), ("boolean", "True"), ("bitrate", "fast"),
                                            ("duration", "soon")])
def test_a_text_that_does_not_fit_is_refused(kind, text):
    with pytest.raises(ValueError, match="expected"):
        from_text(spec(type=kind), text)


@pytest.mark.parametrize(("declared", "key", "word"), [
    ({"type": "integer", "default": True}, "default", "expected a whole number"),
    ({"type": "integer", "default": 5, "max": 4}, "default", "at most 4"),
    ({"type": "integer", "min": "a"}, "min", "does not fit"),
    ({"type": "boolean", "min": 1}, "min", "does not fit"),
    ({"type": "integer", "min": 5, "max": 4}, None, "greater"),
    ({"type": "bitrate", "max": "5MB"}, "max", "does not fit"),
    ({"type": "choice"}, None, "choices"),
    ({"type": "string", "choices": ["a"]}, None, "choices"),
    ({"type": "choice", "choices": ["a"], "default": "b"}, "default", "expected a"),
    ({"type": "integer", "required": True, "default": 1}, "default", "required"),
])
def test_a_declaration_that_contradicts_itself_is_a_fault_where_it_stands(declared, key, word):
    faults = Faults()
    check_spec("p", load_value({"p": declared}).get("p"), spec(**declared), faults)
    [error] = faults.errors
    assert error.place == (f"p.{key}" if key else "p")
    assert word in error.message


def test_names_with_a_meaning_at_run_time_cannot_be_params():
    faults = Faults()
    check_spec("n", load_value({"n": {"type": "integer"}}).get("n"), spec(type="integer"), faults)
    assert "run time" in faults.errors[0].message


@pytest.mark.parametrize("fields", [
    {"type": "integer", "min": 100}, {"type": "integer", "max": -5}, {"type": "number", "min": 0.1, "max": 0.2},
    {"type": "string", "min": 12},
    {"type": "boolean"}, {"type": "bitrate", "min": "7M"}, {"type": "duration", "max": "10ms"},
    {"type": "choice", "choices": ["a", 2]},
    {"type": "integer", "default": 3},
])
def test_samples_are_values_the_param_takes(fields):
    one = spec(**fields)
    assert samples(one)
    for value in samples(one):
        accept(one, value)


# --- substitution ------------------------------------------------------------------------------------------------


def test_a_value_that_is_only_a_name_keeps_its_type_and_others_become_text():
    values = {"w": 1280, "on": True, "rate": "2500k", "x": 1.5}
    settings = {"a": "$w", "b": "${w}", "c": "scale=$w:-2", "d": ["$on", "v$on", {"e": "$x"}], "f": "${x}k", "g": "$rate"}
    filled, faults, _ = fill(settings, values)
    assert faults == []
    assert filled == {"a": 1280, "b": 1280, "c": "scale=1280:-2", "d": [True, "vtrue", {"e": 1.5}], "f": "1.5k", "g": "2500k"}


def test_names_end_where_letters_digits_and_underscores_end():
    filled, faults, _ = fill({"a": "$w_x-$w.$w2", "b": "${w}2"}, {"w": 1, "w_x": 2, "w2": 3})
    assert (filled, faults) == ({"a": "2-1.3", "b": "12"}, [])


def test_a_doubled_dollar_is_a_dollar_and_never_begins_a_name():
    filled, faults, _ = fill({"a": "$$w", "b": "$$$w", "c": "$${w}", "d": "5$$"}, {"w": 1})
    assert (filled, faults) == ({"a": "$w", "b": "$1", "c": "${w}", "d": "5$"}, [])


def test_values_are_not_substituted_again_and_keys_never():
    filled, faults, _ = fill({"$w": "$w and $v"}, {"w": "$v", "v": "x"})
    assert (filled, faults) == ({"$w": "$v and x"}, [])


@pytest.mark.parametrize(("text", "word"), [
    ("$q", "No param is called 'q'"), ("a${qq}b", "No param is called 'qq'"), ("$", "without a name"),
    ("a $ b", "without a name"),
    ("${", "without a name"), ("${}", "without a name"), ("$1", "without a name"), ("${wdith}", "Did you mean width?"),
    ("${source.stem}", "only at run time"), ("$n", "only at run time"),
])
def test_a_dollar_that_leads_nowhere_is_a_fault_with_its_place(text, word):
    _, faults, _ = fill({"a": [{"b": text}]}, {"width": 1})
    assert len(faults) == 1
    assert faults[0].startswith("a[0].b: ")
    assert word in faults[0]


def test_under_output_runtime_names_and_dollars_stay_for_the_run():
    settings = {"output": {"file": "$name-${source.stem}-$n-$$.mp4", "container": "$c"}}
    filled, faults, _ = fill(settings, {"name": "a${n}$", "c": "mp4"})
    assert faults == []
    assert filled["output"]["container"] == "mp4"
    assert expand(filled["output"]["file"], {"source.stem": "film", "n": "3"}) == "a${n}$-film-3-$.mp4"


def test_a_runtime_name_without_a_value_is_an_error():
    with pytest.raises(ValueError, match="rendition"):
        expand("${rendition.name}.mp4", {"source.stem": "x"})


def test_a_setting_that_is_only_an_unset_param_is_left_out():
    filled, faults, _ = fill({"a": "$w", "b": {"c": "${w}", "d": 1}}, {}, known={"w"})
    assert (filled, faults) == ({"b": {"d": 1}}, [])


def test_an_unset_param_inside_a_text_or_a_list_is_a_fault():
    for value in ({"a": "x$w"}, {"a": ["$w"]}):
        _, faults, _ = fill(value, {}, known={"w"})
        assert "may be left unset" in faults[0]


def test_uses_say_where_each_param_went():
    _, _, uses = fill({"a": [["b:v", "$r"]], "c": "$x$r"}, {"r": "1M", "x": 1})
    assert {(use.path, use.names, use.whole) for use in uses} == {
        (("a", 0, 1), frozenset({"r"}), True), (("c",), frozenset({"x", "r"}), False)}


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("$${}ab.n _1é"), max_size=30), st.booleans())
def test_any_text_is_filled_or_refused_and_filled_texts_can_be_expanded(text, in_output):
    filled, faults, _ = fill({"output" if in_output else "x": text}, {"a": "v$", "b": 1})
    [value] = filled.values()
    if not faults and in_output and isinstance(value, str):
        expand(value, {"n": "3", "source.stem": "s", "rendition.name": "r"})


def test_a_run_time_name_ends_where_it_ended_before_a_param_was_filled_in():
    filled, faults, _ = fill({"output": "$n$a"}, {"a": "v"})
    assert not faults and expand(filled["output"], {"n": "3"}) == "3v"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_a_text_with_its_dollars_doubled_comes_out_as_it_was(text):
    doubled = text.replace("$", "$$")
    try:
        filled, faults, _ = fill({"x": doubled, "output": doubled}, {"a": 1})
    except NommerdError:  # a control character
        return
    assert faults == []
    assert filled["x"] == text
    assert expand(filled["output"], {}) == text


@pytest.mark.parametrize(("value", "text"), [(1, "1"), (1.5, "1.5"), (2.0, "2"), (True, "true"), (0.1, "0.1"),
(1e-7, "0.0000001"), (None, "")])
def test_numbers_in_a_text_have_no_exponent(value, text):
    assert as_text(value) == text
