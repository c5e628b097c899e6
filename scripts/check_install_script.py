"""pgspot on an install script, statement by statement: check_install_script.py SCRIPT ALLOWLIST

pgspot's own command ends at the first statement that its printer of expressions cannot print, and the rest is not looked
at. Here each statement is checked, and one that cannot be is a finding. A finding is printed without its line number, which
moves with every edit and says nothing about it.
"""
import argparse
import contextlib
import io
import pathlib
import re
import sys

import pglast.printers.dml
from pglast import parse_sql
from pgspot.state import Counter, State
from pgspot.visitors import SQLVisitor


def last_name(names):
    """The operator of a qualified name: pglast's printer takes an operator in arithmetic to be unqualified."""
    return names[-1].sval


pglast.printers.dml.get_string_value = last_name


def findings(sql):
    args = argparse.Namespace(
        plpgsql=True, proc_without_search_path=[], ignore=[], ignore_lang=[], sql_fn=[], summary_only=False, append=False
    )
    counter = Counter(args)
    counter.sql = sql
    visitor = SQLVisitor(State(counter))
    for statement in parse_sql(sql):
        counter.stmt_location = statement.stmt_location
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                visitor(statement)
        except Exception as error:  # whatever it is, the statement was not checked to its end
            text = sql[statement.stmt_location : statement.stmt_location + statement.stmt_len]
            first = next(line for line in text.splitlines() if line.strip() and not line.startswith("--"))
            yield f"unchecked: {first.strip()}: {error!r}"
        for line in out.getvalue().splitlines():
            if line.strip():
                yield re.sub(r" at line \d+$", "", line.strip())


def main(script, allowlist):
    # MODULE_PATHNAME and the like are replaced by CREATE EXTENSION only; lines that psql alone reads are no SQL.
    sql = re.sub(r"^\\", "-- \\\\", pathlib.Path(script).read_text(), flags=re.MULTILINE)
    found = set(findings(sql))
    lines = pathlib.Path(allowlist).read_text().splitlines()
    allowed = {line for line in lines if line and not line.startswith("#")}
    for line in sorted(found - allowed):
        print(f"not in {allowlist}: {line}")
    for line in sorted(allowed - found):
        print(f"in {allowlist}, but no longer found: {line}")
    return 1 if found != allowed else 0


sys.exit(main(*sys.argv[1:]))
