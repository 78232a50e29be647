"""--where: what is read, how it is printed, and everything that is refused."""

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laionkit.core.errors import ConfigError
from laionkit.ops.predicates import MAX_DEPTH, MAX_LENGTH, Predicate, Term, parse_where, quote_name

COLUMNS = {
    "key": "VARCHAR",
    "url": "VARCHAR",
    "caption": "VARCHAR",
    "language": "VARCHAR",
    "hash": "BIGINT",
    "punsafe": "DOUBLE",
    "aesthetic_v2": "FLOAT",
    "width": "INTEGER",
    "height": "INTEGER",
    "Seen At": "VARCHAR",
    "order": "INTEGER",
    "end": "INTEGER",
}

READ = {
    "punsafe<.1": "punsafe < 0.1",
    "PUNSAFE < .1 and (Width>=512 and height>=512)": (
        "punsafe < 0.1 AND width >= 512 AND height >= 512"
    ),
    "punsafe<1 or width>2": "(punsafe < 1 OR width > 2)",
    "(punsafe<1 or width>2) and hash=-5": "(punsafe < 1 OR width > 2) AND hash = -5",
    "aesthetic_v2 BETWEEN 5 AND 6 AND width > 1": "aesthetic_v2 BETWEEN 5 AND 6 AND width > 1",
    "NOT punsafe < 0.1 AND width IS NOT NULL": "NOT punsafe < 0.1 AND NOT width IS NULL",
    "lower(caption) like '%cat%'": "LOWER(caption) LIKE '%cat%'",
    "caption not ilike 'it''s%' escape '!'": "caption NOT ILIKE 'it''s%' ESCAPE '!'",
    "language in ('en', 'de')": "language IN ('en', 'de')",
    "len(string_split(caption, ' ')) > 2": "LENGTH(STR_SPLIT(caption, ' ')) > 2",
    "regexp_matches(caption, '^a', 'i')": "REGEXP_MATCHES(caption, '^a', 'i')",
    "greatest(width,height)/least(width,height)<=3": (
        "GREATEST(width, height) / LEAST(width, height) <= 3"
    ),
    "mod(width+1, 2) = 0": "(width + 1) % 2 = 0",
    "coalesce(punsafe, 1) < 0.5": "COALESCE(punsafe, 1) < 0.5",
    "if(width>1, height, 2) > 1": "CASE WHEN width > 1 THEN height ELSE 2 END > 1",
    "case when width>1 then true else false end": "CASE WHEN width > 1 THEN TRUE ELSE FALSE END",
    "try_cast(caption as int) > 1": "TRY_CAST(caption AS INT) > 1",
    "width::double > 1e-3": "CAST(width AS DOUBLE) > 1e-3",
    "strlen(caption) > 5": "STRLEN(caption) > 5",
    '"seen at" = \'x\' AND "order" > 1 AND "end" < 2': (
        '"Seen At" = \'x\' AND "order" > 1 AND "end" < 2'
    ),
    "punsafe is not distinct from 0.5": "punsafe IS NOT DISTINCT FROM 0.5",
    "caption = 'SELECT * FROM x; -- no comment'": "caption = 'SELECT * FROM x; -- no comment'",
    "true": "TRUE",
}

REFUSED = {
    "subquery": "width > (SELECT 1)",
    "bare subquery": "(select true)",
    "in subquery": "width in (select 1)",
    "in table": "width in duckdb_settings",
    "exists": "exists(select 1)",
    "from": "from x",
    "union": "width > 1 union select 1",
    "read_csv": "read_csv('/etc/passwd') is null",
    "read_text": "read_text('/etc/passwd') is null",
    "read_blob": "(select content from read_blob('/etc/passwd')) is not null",
    "file as table": "width in (from '/etc/passwd')",
    "glob": "glob('/*') is null",
    "glob operator": "caption glob 'x*'",
    "settings": "duckdb_settings() is null",
    "current_setting": "current_setting('threads') = 1",
    "getvariable": "getvariable('x') = 1",
    "getenv": "getenv('HOME') = 'x'",
    "version": "version() = 'x'",
    "two statements": "width > 1; drop table t",
    "statement": "drop table t",
    "trailing semicolon": "width > 1;",
    "line comment": "width > 1 -- and punsafe < 0.1",
    "block comment": "width > 1 /* x */",
    "empty comment": "width > 1 /**/",
    "leading comment": "/* x */ width > 1",
    "unclosed comment": "width > 1 /* ",
    "random": "random() < 0.5",
    "setseed": "setseed(0.5) is null",
    "uuid": "gen_random_uuid() is null",
    "now": "now() is null",
    "current_date": "current_date is null",
    "current_user": "current_user = 'x'",
    "nextval": "nextval('s') = 1",
    "copy": "COPY t TO 'x'",
    "pragma": "PRAGMA threads=1",
    "set": "SET threads=1",
    "attach": "ATTACH 'x.db'",
    "install": "INSTALL httpfs",
    "load": "LOAD httpfs",
    "call": "CALL pragma_version()",
    "lambda": "list_filter([1], x -> x > 1) is null",
    "new lambda": "list_filter([1], lambda x: x > 1) is null",
    "comprehension": "[x for x in [1]] is null",
    "list": "[1, 2] is null",
    "index": "caption[1] = 'a'",
    "struct": "{'a': 1} is null",
    "struct_pack": "struct_pack(a := 1) is null",
    "map": "map {'a': 1} is null",
    "columns star": "columns(*) > 1",
    "columns regex": "columns('w.*') > 1",
    "star": "*",
    "count star": "count(*) > 1",
    "question mark": "width > ?",
    "dollar": "width > $1",
    "named parameter": "width > $x",
    "colon parameter": "width > :x",
    "sum": "sum(width) > 1",
    "list aggregate": "list_aggregate([1], 'sum') > 1",
    "window": "row_number() over () < 5",
    "filter": "max(width) filter (where true) > 1",
    "cast json": "cast(caption as json) is null",
    "cast struct": "cast(caption as struct(a int)) is null",
    "cast array": "cast(caption as int[]) is null",
    "cast enum": "cast(caption as enum('a')) is null",
    "cast user type": "cast(caption as mytype) is null",
    "cast blob": "caption::blob is null",
    "cast timestamptz": "caption::timestamptz is null",
    "cast decimal": "cast(width as decimal(38, 10)) is null",
    "regclass": "caption::regclass is null",
    "table column": "t.width > 1",
    "schema column": "main.t.width > 1",
    "alias": "width > 1 as x",
    "tilde": "caption ~ 'x'",
    "similar to": "caption similar to 'x'",
    "collate": "caption collate nocase = 'x'",
    "interval": "interval 1 day > interval 2 day",
    "at time zone": "date '2020-01-01' at time zone 'UTC' is null",
    "bytes": "E'\\x41' = caption",
    "dollar quoted": "$$a$$ = caption",
    "any": "width > any([1])",
    "all": "width > all(select 1)",
    "unnest": "unnest([1]) = 1",
    "repeat": "repeat(caption, 1000000000) = 'x'",
    "lpad": "lpad(caption, 1000000000, 'x') = 'x'",
    "range": "range(1000000000) is null",
    "printf": "printf('%s', caption) = 'x'",
    "format": "format('{:1000000000}', caption) = 'x'",
    "query function": "query('select 1') is null",
    "query_table": "query_table('t') is null",
    "getattr": "query_location() is null",
    "error": "error('x') is null",
    "macro": "system.main.abs(width) > 1",
    "json arrow": "caption->>'a' = 'x'",
    "json_extract": "json_extract(caption, '$.a') is null",
    "order by": "width > 1 order by 1",
    "limit": "width > 1 limit 1",
    "qualify": "width > 1 qualify true",
    "unclosed": "(width > 1",
    "unclosed text": "caption = 'x",
    "escape from text": "caption = 'x' or 1=1)--",
    "two expressions": "width > 1, height > 1",
    "empty": "",
    "blank": "  \n ",
    "null byte": "width > 1\x00 or true",
    "deep parentheses": "(" * 100 + "width > 1" + ")" * 100,
    "very deep": "(" * 5000 + "width > 1" + ")" * 5000,
    "deep not": "not " * 500 + "true",
    "deep functions": "abs(" * 60 + "width" + ")" * 60 + " > 1",
    "deep sum": "width" + "+1" * 1500 + " > 1",
    "deep minus": "width > " + "- " * 1500 + "1",
    "deep case": "case when true then " * 100 + "true" + " end" * 100,
    "deep and in or": "(true or " * 60 + "true" + ")" * 60,
    "long": "width > 1 and " * 2000 + "true",
}


@pytest.mark.parametrize("sql", READ)
def test_an_expression_is_printed_back_canonically_and_once_more_the_same(sql):
    printed = parse_where(sql, COLUMNS).sql
    assert printed == READ[sql]
    assert parse_where(printed, COLUMNS).sql == printed


@pytest.mark.parametrize("sql", READ)
def test_what_is_printed_means_the_same_to_duckdb(sql):
    con = duckdb.connect()
    fields = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
    con.execute(f"CREATE TABLE t ({fields})")
    con.execute(
        "INSERT INTO t SELECT i, 'http://a/' || i, CASE WHEN i % 3 = 0 THEN NULL ELSE 'a cat ' || i"
        " END, CASE WHEN i % 2 = 0 THEN 'en' ELSE 'fr' END, i - 7, CASE WHEN i % 5 = 0 THEN NULL"
        " ELSE i / 20.0 END, i / 3.0, i * 100, 900, 'x', i % 4, 1 FROM range(20) r(i)"
    )
    wanted = con.execute(f"SELECT key FROM t WHERE {sql}").fetchall()
    got = con.execute(f"SELECT key FROM t WHERE {parse_where(sql, COLUMNS).sql}").fetchall()
    assert got == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_the_hostile_corpus_is_refused_in_one_line(name):
    with pytest.raises(ConfigError) as caught:
        parse_where(REFUSED[name], COLUMNS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_top_level_and_terms_stand_alone_with_their_columns():
    found = parse_where("(width>1 and (height>1 and width<9)) and (punsafe<1 or width=2)", COLUMNS)
    assert found == Predicate(
        "width > 1 AND height > 1 AND width < 9 AND (punsafe < 1 OR width = 2)",
        (
            Term("width > 1", ("width",)),
            Term("height > 1", ("height",)),
            Term("width < 9", ("width",)),
            Term("punsafe < 1 OR width = 2", ("punsafe", "width")),
        ),
        ("width", "height", "punsafe"),
    )


def test_an_unknown_column_gets_a_suggestion_and_the_list():
    with pytest.raises(ConfigError, match=r"no column is called punsave \(did you mean punsafe\?"):
        parse_where("punsave < 0.1", COLUMNS)
    with pytest.raises(ConfigError, match="there are key, url, caption"):
        parse_where("zzz < 0.1", list(COLUMNS))


def test_a_long_chain_of_terms_is_no_depth():
    sql = " AND ".join(f"width <> {i}" for i in range(500))
    assert len(parse_where(sql, COLUMNS).terms) == 500
    either = " OR ".join(f"width = {i}" for i in range(500))
    assert len(parse_where(either, COLUMNS).terms) == 1


def test_limits_hold_at_their_border():
    assert parse_where("abs(" * 30 + "width" + ")" * 30 + " > 1", COLUMNS).columns
    with pytest.raises(ConfigError, match=f"nested deeper than {MAX_DEPTH} levels"):
        parse_where("(" * MAX_DEPTH + "width > 1" + ")" * MAX_DEPTH, COLUMNS)
    text = "caption = '" + "x" * (MAX_LENGTH - 12) + "'"
    assert parse_where(text, COLUMNS).sql == text


def test_every_keyword_of_duckdb_works_as_a_column_name():
    con = duckdb.connect()
    words = [
        w
        for (w,) in con.execute(
            "SELECT DISTINCT keyword_name FROM duckdb_keywords() ORDER BY 1"
        ).fetchall()
    ]
    fields = ", ".join(f'1 AS "{word}"' for word in words)
    con.execute(f"CREATE TABLE t AS SELECT {fields}")
    sql = " AND ".join(f'"{word}" = 1' for word in words)
    printed = parse_where(sql, words)
    assert printed.columns == tuple(words)
    assert con.execute(f"SELECT count(*) FROM t WHERE {printed.sql}").fetchall() == [(1,)]
    names = ", ".join(quote_name(word) for word in words)
    assert len(con.execute(f"SELECT {names} FROM t").fetchall()) == 1


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_and_nothing_else_happens(text):
    try:
        printed = parse_where(text, COLUMNS)
    except ConfigError:
        return
    assert parse_where(printed.sql, COLUMNS).sql == printed.sql


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30))
def test_a_text_literal_survives_printing(text):
    sql = "caption = '" + text.replace("'", "''") + "'"
    printed = parse_where(sql, COLUMNS).sql
    con = duckdb.connect()
    con.execute("CREATE TABLE t (caption VARCHAR)")
    con.execute("INSERT INTO t VALUES (?)", [text])
    assert con.execute(f"SELECT count(*) FROM t WHERE {printed}").fetchall() == [(1,)]
