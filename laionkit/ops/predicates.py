"""``--where``: one scalar SQL expression, parsed on its own and printed back canonically.

The text is untrusted. sqlglot parses it in DuckDB's dialect, every node of the tree must be of an
allowed kind, and only what is printed from that tree ever reaches the engine: no subquery,
statement, aggregate, window, lambda, file, network, setting, comment or randomness survives.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import sqlglot
from sqlglot import Token, TokenType, exp
from sqlglot.errors import SqlglotError

from laionkit.core.errors import ConfigError, did_you_mean

MAX_LENGTH = 20_000
MAX_TOKENS = 4_000
MAX_DEPTH = 40
# A ledger's value is cut at so many characters.
MAX_VALUE_CHARS = 200
DIALECT = "duckdb"

_OPERATORS: tuple[type[exp.Expr], ...] = (
    exp.And,
    exp.Or,
    exp.Not,
    exp.Paren,
    exp.EQ,
    exp.NEQ,
    exp.GT,
    exp.GTE,
    exp.LT,
    exp.LTE,
    exp.NullSafeEQ,
    exp.NullSafeNEQ,
    exp.Is,
    exp.In,
    exp.Between,
    exp.Like,
    exp.ILike,
    exp.Escape,
    exp.Add,
    exp.Sub,
    exp.Mul,
    exp.Div,
    exp.IntDiv,
    exp.Mod,
    exp.Neg,
    exp.DPipe,
    exp.Case,
    exp.If,
    exp.Cast,
    exp.TryCast,
    exp.DataType,
    exp.Column,
    exp.Identifier,
    exp.Literal,
    exp.Boolean,
    exp.Null,
)
# Pure functions of their arguments; each costs time and memory linear in them (RE2 included).
_FUNCTIONS: tuple[type[exp.Expr], ...] = (
    exp.Abs,
    exp.Ceil,
    exp.Coalesce,
    exp.Concat,
    exp.Contains,
    exp.EndsWith,
    exp.Exp,
    exp.Floor,
    exp.Greatest,
    exp.IsNan,
    exp.Least,
    exp.Left,
    exp.Length,
    exp.Ln,
    exp.Lower,
    exp.Nullif,
    exp.Pow,
    exp.RegexpExtract,
    exp.RegexpLike,
    exp.Right,
    exp.Round,
    exp.Sign,
    exp.Split,
    exp.SplitPart,
    exp.Sqrt,
    exp.StartsWith,
    exp.StrPosition,
    exp.Substring,
    exp.Trim,
    exp.Upper,
)
_NAMED_FUNCTIONS = frozenset({"isfinite", "prefix", "strlen", "suffix"})
_ALLOWED = frozenset(_OPERATORS) | frozenset(_FUNCTIONS)
_TYPES = frozenset(
    {
        exp.DataType.Type.BIGINT,
        exp.DataType.Type.BOOLEAN,
        exp.DataType.Type.DATE,
        exp.DataType.Type.DOUBLE,
        exp.DataType.Type.FLOAT,
        exp.DataType.Type.INT,
        exp.DataType.Type.SMALLINT,
        exp.DataType.Type.TEXT,
        exp.DataType.Type.TIMESTAMP,
        exp.DataType.Type.TINYINT,
        exp.DataType.Type.UBIGINT,
        exp.DataType.Type.UINT,
        exp.DataType.Type.VARCHAR,
    }
)
# `~` is a full match in DuckDB and a search in sqlglot's tree; the rest have no place in a filter.
_REFUSED_TOKENS = {
    TokenType.TILDE: "~ (write regexp_matches(column, 'pattern'))",
    TokenType.SEMICOLON: "; (one expression only)",
    TokenType.PARAMETER: "a parameter",
    TokenType.PLACEHOLDER: "a parameter",
    TokenType.L_BRACKET: "[ ]",
    TokenType.L_BRACE: "{ }",
    TokenType.SELECT: "a subquery (SELECT)",
}
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True)
class Term:
    """One top-level AND term of a filter: its canonical SQL and the columns it reads."""

    sql: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Predicate:
    """A checked filter: canonical SQL, its AND terms in order, the columns it reads."""

    sql: str
    terms: tuple[Term, ...]
    columns: tuple[str, ...]


def parse_where(sql: str, columns: Mapping[str, str] | Collection[str]) -> Predicate:
    """Parse one scalar SQL expression over `columns`; refuse everything that is not one.

    Names are resolved without regard to case to the spelling in `columns`. Raises ConfigError in
    one line: what is not allowed, or the unknown column with the nearest name and those there are.
    """
    tree = _parse(sql)
    _check(tree, sql)
    known = {name.lower(): name for name in columns}
    tree = tree.transform(lambda node: _resolve(node, known, sql))
    terms = tuple(_term(part, sql) for part in _and_terms(tree))
    names = tuple(dict.fromkeys(name for term in terms for name in term.columns))
    return Predicate(" AND ".join(_in_and(term.sql) for term in terms), terms, names)


def quote_name(name: str) -> str:
    """Spell a column for DuckDB, quoted only where it must be.

    >>> quote_name("punsafe"), quote_name("Order"), quote_name("order")
    ('punsafe', '"Order"', '"order"')
    """
    return _identifier(name).sql(dialect=DIALECT)


def quote_text(text: str) -> str:
    """Spell a string literal for DuckDB.

    >>> quote_text("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def compares_one_column(term: Term) -> bool:
    """Tell whether a term sets one column beside a literal: it is null just where that is.

    >>> compares_one_column(Term("punsafe < 0.1", ("punsafe",)))
    True
    >>> compares_one_column(Term("punsafe IS NULL", ("punsafe",)))
    False
    """
    node = sqlglot.parse_one(term.sql, read=DIALECT)
    if not isinstance(node, exp.GT | exp.GTE | exp.LT | exp.LTE | exp.EQ):
        return False
    sides = [side.this if isinstance(side, exp.Neg) else side for side in (node.left, node.right)]
    return {type(side) for side in sides} == {exp.Column, exp.Literal}


def value_sql(term: Term, short: Collection[str] = ()) -> str:
    """SQL of what a condition saw: the column's value, or each ``column=value``.

    The values of `short` columns need no cutting.
    """
    if not term.columns:
        return "NULL"
    texts = [f"{quote_name(name)}::VARCHAR" for name in term.columns]
    if len(texts) > 1:
        named = [
            f"{quote_text(name + '=')} || {text}"
            for name, text in zip(term.columns, texts, strict=True)
        ]
        return f"left(concat_ws(', ', {', '.join(named)}), {MAX_VALUE_CHARS})"
    if term.columns[0] in short:
        return texts[0]
    return f"left({texts[0]}, {MAX_VALUE_CHARS})"


def _parse(sql: str) -> exp.Expr:
    if len(sql) > MAX_LENGTH:
        raise ConfigError(f"--where has {len(sql)} characters, more than {MAX_LENGTH}")
    try:
        tokens = sqlglot.tokenize(sql, read=DIALECT)
        _check_tokens(tokens, sql)
        trees = sqlglot.parse(sql, read=DIALECT)
    except SqlglotError as error:
        raise ConfigError(f"--where {_short(sql)}: {_problem(error)}") from error
    except RecursionError as error:
        raise _too_deep(sql) from error
    if len(trees) != 1 or trees[0] is None:
        raise ConfigError(f"--where {_short(sql)}: give one expression, such as punsafe < 0.1")
    return trees[0]


def _check_tokens(tokens: list[Token], sql: str) -> None:
    if not tokens:
        raise ConfigError("--where is empty: give one expression, such as punsafe < 0.1")
    if len(tokens) > MAX_TOKENS:
        raise ConfigError(f"--where has {len(tokens)} words, more than {MAX_TOKENS}")
    depth = 0
    for token in tokens:
        if token.comments:
            raise _refused("a comment", sql)
        if token.token_type in _REFUSED_TOKENS:
            raise _refused(_REFUSED_TOKENS[token.token_type], sql)
        depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(token.token_type, 0)
        if depth >= MAX_DEPTH:
            raise _too_deep(sql)


def _check(tree: exp.Expr, sql: str) -> None:
    """Refuse every node that is not of an allowed kind, and depth outside AND/OR chains."""
    todo = [(tree, 0)]
    while todo:
        node, depth = todo.pop()
        _check_node(node, sql)
        if depth > MAX_DEPTH:
            raise _too_deep(sql)
        chain = isinstance(node, exp.Connector)
        todo += [(child, depth if chain else depth + 1) for child in node.iter_expressions()]


def _check_node(node: exp.Expr, sql: str) -> None:
    if isinstance(node, exp.Anonymous):
        if str(node.this).lower() not in _NAMED_FUNCTIONS:
            raise _refused(f"the function {str(node.this).lower()}", sql)
        return
    if type(node) not in _ALLOWED:
        raise _refused(_what(node), sql)
    if isinstance(node, exp.Column) and (
        node.args.get("table") or not isinstance(node.this, exp.Identifier)
    ):
        raise _refused(f"{node.sql(dialect=DIALECT)} (a column's plain name only)", sql)
    if isinstance(node, exp.In) and not node.expressions:
        raise _refused("IN over anything but a list of values", sql)
    if isinstance(node, exp.DataType) and (node.this not in _TYPES or node.expressions):
        raise _refused(f"the type {node.sql(dialect=DIALECT)}", sql)
    if isinstance(node, exp.Cast | exp.TryCast) and node.args.get("format"):
        raise _refused("a cast with a format", sql)


def _resolve(node: exp.Expr, known: Mapping[str, str], sql: str) -> exp.Expr:
    if isinstance(node, exp.If) and not isinstance(node.parent, exp.Case):
        branch = exp.If(this=node.this, true=node.args["true"])
        return exp.Case(ifs=[branch], default=node.args.get("false"))
    if not isinstance(node, exp.Column):
        return node
    name = known.get(node.name.lower())
    if name is None:
        hint = did_you_mean(node.name.lower(), known)
        there = ", ".join(known.values())
        raise ConfigError(
            f"--where {_short(sql)}: no column is called {node.name}{hint}; there are {there}"
        )
    return exp.Column(this=_identifier(name))


def _identifier(name: str) -> exp.Identifier:
    bare = bool(_PLAIN_NAME.fullmatch(name)) and _reads_as_column(name)
    return exp.Identifier(this=name, quoted=not bare)


def _reads_as_column(name: str) -> bool:
    """Tell whether a bare word is read, and printed, as a column and not as a keyword."""
    tokens = sqlglot.tokenize(name, read=DIALECT)
    if name == "if" or len(tokens) != 1 or tokens[0].token_type is not TokenType.VAR:
        return False
    return exp.Identifier(this=name, quoted=False).sql(dialect=DIALECT) == name


def _and_terms(tree: exp.Expr) -> Iterator[exp.Expr]:
    """Top-level AND terms, left to right, parentheses around them taken off."""
    todo = [tree]
    while todo:
        node = todo.pop()
        while isinstance(node, exp.Paren):
            node = node.this
        if isinstance(node, exp.And):
            todo += [node.expression, node.this]
        else:
            yield node


def _term(node: exp.Expr, sql: str) -> Term:
    """Print a term and make sure that the print reads back as the very same tree."""
    try:
        text = node.sql(dialect=DIALECT)
        same = sqlglot.parse_one(text, read=DIALECT) == node
    except RecursionError as error:
        raise _too_deep(sql) from error
    except SqlglotError:
        same = False
    if not same:
        raise ConfigError(f"--where {_short(sql)}: {_short(text)} is ambiguous: add parentheses")
    names = [column.name for column in node.find_all(exp.Column, bfs=False)]
    return Term(text, tuple(dict.fromkeys(names)))


def _in_and(sql: str) -> str:
    """The term as it stands between ANDs: an OR needs parentheses there."""
    return f"({sql})" if isinstance(sqlglot.parse_one(sql, read=DIALECT), exp.Or) else sql


def _what(node: exp.Expr) -> str:
    if isinstance(node, exp.AggFunc | exp.Window):
        return f"{node.sql(dialect=DIALECT)} (an aggregate or window)"
    if isinstance(node, exp.Query | exp.Subquery | exp.Exists):
        return "a subquery"
    if isinstance(node, exp.Func):
        return f"the function {node.sql_name().lower()}"
    return f"{type(node).__name__.upper()} in {_short(node.sql(dialect=DIALECT))}"


def _refused(what: str, sql: str) -> ConfigError:
    return ConfigError(
        f"--where {_short(sql)}: {what} is not allowed; "
        "give one expression over columns, such as punsafe < 0.1 AND width >= 512"
    )


def _too_deep(sql: str) -> ConfigError:
    return ConfigError(f"--where {_short(sql)}: nested deeper than {MAX_DEPTH} levels")


def _short(sql: str) -> str:
    text = " ".join(sql.split())
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _problem(error: SqlglotError) -> str:
    """Say in one line what the parser stumbled over."""
    details = getattr(error, "errors", None)
    if not details:
        return f"not readable as SQL ({' '.join(str(error).split())[:80]})"
    first = details[0]
    near = first.get("highlight") or "the end"
    what = first.get("description", "not readable as SQL")
    if what.startswith("Required keyword"):  # it names a class of the parser's
        what = "something is missing"
    return f"{what} (near {near})"
