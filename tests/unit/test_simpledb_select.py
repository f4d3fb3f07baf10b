"""The select language of the small SimpleDB: grammar, quoting, conditions, orders, limits, as Amazon documents them."""

from __future__ import annotations

import pytest

from tests.simpledb_select import Item, SelectError, parse

# What the Developer Guide's examples are about: items by name, with attributes of several values.
BOOKS = {
    "tropics": {"Year": ["1959"], "Pages": ["00318"], "Keyword": ["Book", "Paperback"],
                "Rating": ["*****", "5 stars", "Excellent"]},
    "salt": {"Year": ["1989"], "Pages": ["00288"], "Keyword": ["Book", "Hardcover"], "Rating": ["***", "3 stars"]},
    "sirens": {"Year": ["1979"], "Pages": ["00304"], "Keyword": ["Book", "Paperback"], "Rating": ["****"]},
    "sound": {"Year": ["2007"], "Keyword": ["CD", "Trance"], "Rating": ["****", "4 stars"]},
    "film": {"Year": ["2007"], "Keyword": ["DVD", "Action", "Frank Miller"], "Rating": ["***", "3 stars", "Not bad"]},
    "odd": {"it's": ["He said, \"That's it\""], "a`b": ["100%"], "limit": ["ü"]},
}
ITEMS = [Item(name, frozenset((key, value) for key, values in attributes.items() for value in values))
         for name, attributes in BOOKS.items()]


def found(rest: str) -> list[str]:
    """The names of what matches, sorted as asked for, else by name."""
    select = parse(f"select * from d {rest}")
    matching = sorted((item for item in ITEMS if select.matches(item)), key=lambda item: item.name)
    return [item.name for item in sorted(matching, key=select.sort_value, reverse=select.descending)]


@pytest.mark.parametrize(("where", "names"), [
    ("Year = '1959'", ["tropics"]),
    ("Year != '2007'", ["salt", "sirens", "tropics"]),
    ("Year > '1979' and Year < '2007'", ["salt"]),
    ("Year >= '1979' and Year <= '1989'", ["salt", "sirens"]),
    ("Year between '1975' and '2006'", ["salt", "sirens"]),
    ("Year in ('1959', '2007')", ["film", "sound", "tropics"]),
    ("Year = '1959' or Year = '2007'", ["film", "sound", "tropics"]),
    ("Keyword like 'Frank%'", ["film"]),
    ("Keyword like '%ack'", ["sirens", "tropics"]),
    ("Keyword like '%cover'", ["salt"]),
    ("Keyword like '%rdc%'", ["salt"]),
    ("Keyword not like 'B%' intersection Year > '2000'", ["film", "sound"]),
    ("Pages is null", ["film", "odd", "sound"]),
    ("Pages is not null", ["salt", "sirens", "tropics"]),
    ("not Year = '2007' intersection Year is not null", ["salt", "sirens", "tropics"]),
    ("(Year > '1950' and Year < '1960') or Year like '198%' or Year = '2007'", ["film", "salt", "sound", "tropics"]),
    ("itemName() = 'salt' or itemName() like 'si%'", ["salt", "sirens"]),
    ("itemName() in ('film', 'none')", ["film"]),
    ("nothing = ''", []),
    ("SELECT.x = '1'", None),
])
def test_conditions_find_what_they_say(where: str, names: list[str] | None) -> None:
    if names is None:
        with pytest.raises(SelectError):
            found(f"where {where}")
    else:
        assert found(f"where {where}") == names


class TestManyValues:
    def test_one_value_must_meet_a_whole_predicate(self) -> None:
        assert found("where Keyword = 'Book' and Keyword = 'Hardcover'") == []
        assert found("where Rating > '3' and Rating < '4'") == ["film", "salt"]

    def test_other_predicates_between_do_not_change_that(self) -> None:
        assert found("where Keyword = 'Book' and Year = '1989' and Keyword = 'Hardcover'") == []

    def test_an_intersection_lets_each_predicate_have_its_own_value(self) -> None:
        assert found("where Keyword = 'Book' intersection Keyword = 'Hardcover'") == ["salt"]

    def test_every_wants_all_values_to_meet_it(self) -> None:
        assert found("where Rating = '****'") == ["sirens", "sound"]
        assert found("where every(Rating) = '****'") == ["sirens"]
        assert found("where every(Keyword) in ('Book', 'Paperback')") == ["sirens", "tropics"]


class TestPrecedence:
    def test_and_binds_more_than_or_and_parentheses_change_it(self) -> None:
        assert found("where Year = '1959' or Year = '2007' and Keyword = 'CD'") == ["sound", "tropics"]
        assert found("where (Year = '1959' or Year = '2007') and Keyword = 'CD'") == ["sound"]

    def test_not_binds_most(self) -> None:
        assert found("where not Year = '1959' and Keyword = 'Book'") == ["salt", "sirens"]


class TestQuoting:
    @pytest.mark.parametrize("text", ["'He said, \"That''s it\"'", '"He said, ""That\'s it"""'])
    def test_quotes_within_a_text_are_doubled(self, text: str) -> None:
        assert found(f"where `it's` = {text}") == ["odd"]

    def test_backticks_within_a_name_are_doubled(self) -> None:
        assert found("where `a``b` = '100%'") == ["odd"]

    def test_reserved_words_are_names_within_backticks_only(self) -> None:
        assert found("where `limit` = 'ü'") == ["odd"]
        with pytest.raises(SelectError):
            parse("select * from d where limit = 'ü'")

    @pytest.mark.parametrize("name", ["my-domain", "1st", "a.b", "für"])
    def test_other_names_must_be_quoted(self, name: str) -> None:
        assert parse(f"select * from `{name}`").domain == name
        with pytest.raises(SelectError):
            parse(f"select * from {name}")

    def test_keywords_may_be_written_in_capitals(self) -> None:
        assert found("WHERE Year IS NOT NULL ORDER BY Year DESC LIMIT 5")[-1] == "tropics"


class TestOrder:
    def test_results_are_sorted_as_text_either_way(self) -> None:
        assert found("where Year < '1980' order by Year") == ["tropics", "sirens"]
        assert found("where Year < '1980' order by Year desc") == ["sirens", "tropics"]
        assert found("where itemName() > 's' order by itemName() desc") == ["tropics", "sound", "sirens", "salt"]

    def test_bytes_of_utf8_decide(self) -> None:
        texts = ["a", "B", "é", "\uffee", "\U0001f600", "10", "9"]
        items = [Item(text, frozenset({("x", text)})) for text in texts]
        select = parse("select * from d where x is not null order by x")
        assert [item.name for item in sorted(items, key=select.sort_value)] == sorted(texts, key=str.encode)

    @pytest.mark.parametrize("rest", ["order by Year", "where Pages > '0' order by Year", "where Year is null order by Year",
                                      "where Year = '1959' order by itemName()"])
    def test_an_order_needs_a_predicate_on_its_attribute(self, rest: str) -> None:
        with pytest.raises(SelectError) as caught:
            parse(f"select * from d {rest}")
        assert caught.value.code == "InvalidSortExpression"

    def test_items_without_the_attribute_are_not_sorted_in(self) -> None:
        assert found("where Pages is not null or Keyword = 'CD' order by Pages") == ["salt", "sirens", "tropics"]


class TestBounds:
    def test_the_limit_is_a_hundred_unless_told_and_at_most_2500(self) -> None:
        assert (parse("select * from d").limit, parse("select * from d limit 2500").limit) == (100, 2500)
        for limit in ("0", "2501", "-1", "'5'", ""):
            with pytest.raises(SelectError):
                parse(f"select * from d limit {limit}")

    def test_twenty_comparisons_are_taken_and_no_more(self) -> None:
        def many(count: int) -> str:
            return "select * from d where a in (" + ", ".join(f"'{number}'" for number in range(count - 1)) + ") and b = '1'"

        parse(many(20))
        with pytest.raises(SelectError) as caught:
            parse(many(21))
        assert caught.value.code == "InvalidNumberValueTests"

    def test_outputs_are_all_names_counts_or_attributes(self) -> None:
        outputs = [parse(f"select {output} from d").output for output in ("*", "itemName()", "count(*)", "a, `b c`")]
        assert outputs == ["*", "itemName()", "count(*)", ("a", "b c")]

    @pytest.mark.parametrize("expression", [
        "", "select", "select * from", "select from d", "select * from d where", "select * from d where a",
        "select * from d a = '1'", "select * from d where a = 1", "select * from d where a = 'x",
        "select * from d where a = 'x' 'y'", "select * from d;", "select * from d where (a = '1'",
        "select * from d where a = '1')", "select * from d where a in ()", "select * from d where a between '1'",
        "select * from d where every a = '1'", "select *, a from d", "delete from d", "select * from d where a is 'x'",
        "select * from d where not", "select * from d limit 5 order by a", "select * from d where = '1'",
        "select count(a) from d",
        "select * from d where a == '1'", "select * from d where `a = '1'", "select * from d where a ( '1'"])
    def test_anything_else_is_refused(self, expression: str) -> None:
        with pytest.raises(SelectError) as caught:
            parse(expression)
        assert caught.value.code == "InvalidQueryExpression"
