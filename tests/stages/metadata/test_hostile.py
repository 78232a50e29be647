"""Whatever --where is handed from a shell: one clear line, exit 2, nothing left behind."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

HOSTILE = [
    # other tables, files, settings, the machine
    "url IN (SELECT url FROM 'other.parquet')", "(SELECT true)", "EXISTS (FROM duckdb_settings())",
    "read_csv('/etc/passwd') IS NULL", "read_text('/etc/passwd') = ''", "glob('/*') IS NULL",
    "duckdb_settings() IS NULL", "current_setting('temp_directory') = ''", "getenv('HOME') = ''",
    "parquet_metadata('x') IS NULL", "pragma_version() IS NULL", "batch.url IS NULL",
    # statements, comments, what follows an expression
    "1=1; DROP TABLE batch", "1=1;", "COPY batch TO '/tmp/x'", "SET memory_limit='1TB'",
    "ATTACH 'x.db'", "true -- comment", "true /* comment */", "true) OR (true",
    "true LIMIT 1", "true ORDER BY 1", "true GROUP BY 1", "true UNION SELECT true",
    "CREATE MACRO f(x) AS x", "f(x) := 1", "PREPARE p AS SELECT 1", "$1", "?", ":name",
    # not the same twice, or of more than one row
    "random() < 0.5", "uuid() = ''", "now() IS NULL", "current_timestamp IS NULL",
    "nextval('s') = 1", "count(*) > 1", "row_number() OVER () < 5", "COLUMNS(*) > 1", "*",
    "score > ANY (SELECT 1)", "lag(score) OVER () > 1",
    # time and memory
    "repeat('a', 1000000000) = ''", "range(1000000000000) IS NULL",
    "lpad('', 2000000000, 'x') = ''",
    "list_transform(range(1000), x -> x) IS NULL", "list_sum([x FOR x IN range(9)]) > 1",
    "printf('%2000000000d', 1) = ''", "format('{:>2000000000}', 'x') = ''",
    "regexp_replace(caption, '(a+)+$', repeat('b', 99)) = ''", "sleep_ms(100000) IS NULL",
    "regexp_matches(caption, '((a{1000}){1000}){1000}')", "regexp_matches(caption, '(')",
    "factorial(100000) > 1", "bar(score, 0, 1, 100000000) = ''", "array_agg(url) IS NULL",
    "CAST(caption AS BIGNUM) > 1", "CAST(score AS DECIMAL(38, 30)) > 1", "score::HUGEINT > 1",
    "CAST(caption AS STRUCT(a INT)) IS NULL", "CAST(caption AS INT[100000000]) IS NULL",
    "(" * 200 + "true" + ")" * 200, "NOT " * 500 + "true", "+".join(["score"] * 5000) + " > 1",
    "score > 1 " + "AND (score > 1 OR (" * 100 + "true" + "))" * 100, "x" * 50_000,
    # no condition, no column, no SQL
    "caption", "score", "1", "'true'", "scoer > 1", "_laionkit_code > 0", "rowid > 1",
    "file_row_number > 1", "score >", "score > 1 AND", "(score > 1", "'unclosed", "score ＞ 1",
    "“score” > 1", "score > 'abc'", "caption > 1", "CAST(caption AS INT) > 1", "score % 0 = 1",
    "score * 9223372036854775807 > 1", "caption LIKE 'x' ESCAPE 'ab'", "score IN ()",
    "url SIMILAR TO '.*'", "struct.field > 1", "{'a': 1} IS NULL", "[1] IS NULL", "MAP {} IS NULL",
]  # fmt: skip


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    path = tmp_path_factory.mktemp("links") / "links.parquet"
    rows = [
        {"url": f"http://a.example/{i}", "text": f"a picture {i}", "score": i} for i in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("where", HOSTILE, ids=lambda where: ascii(where)[:50])
def test_a_hostile_filter_is_one_line_and_exit_2(links, tmp_path, laionkit, where):
    ran = laionkit("metadata", links, tmp_path / "d", "--where", where, "--json")
    assert ran.code == 2
    errors = [line for line in ran.err.splitlines() if line.startswith("laionkit:")]
    assert len(errors) == 1
    assert "Traceback" not in ran.err
    assert "sqlglot" not in ran.err
    assert len(errors[0]) < 500
    assert not (tmp_path / "d").exists()
    assert ran.out == ""
