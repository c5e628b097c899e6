# Thin on purpose: what a target does is in scripts/, where it can be read and checked as a program.

# The PostgreSQL to build for and to copy for tests; found when not named.
export PG_CONFIG
export DESTDIR
# Where the benchmark of other job systems lies, its scratch directory, and its results: see scripts/bench-peers.sh.
export PEERS
export PEERS_WORK
export PEERS_JSON

.PHONY: help demo test check soak bites lint install psql bench bench-peers bench-report

help:
	@echo "make demo      install what is missing, build, and show jobs running on a throw-away server"
	@echo "make test      all tests, on throw-away servers (one file: make test ARGS='--test cancel')"
	@echo "make check     try out make install, below a directory of its own, and make demo, without a terminal"
	@echo "make soak      the long tests: model, races, properties, floods, crash ledger, memory, signals, sqlsmith (some: make soak ARGS='--only memory')"
	@echo "make bites     show that the crash ledger finds bugs that are planted"
	@echo "make psql      a prompt on the demo's server"
	@echo "make bench     figures of this machine, in minutes (long runs: make bench ARGS='--only size,old-snapshot')"
	@echo "make bench-peers    beside other job systems (PEERS=/path/to/their/benchmark); make bench-report writes the table"
	@echo "make lint      format, clippy, install script"
	@echo "make install   into the PostgreSQL of PG_CONFIG=/path/to/pg_config, below DESTDIR=... if set"

demo:
	@scripts/demo.sh

psql:
	@scripts/demo.sh --psql

test:
	@scripts/test.sh $(ARGS)

check:
	@scripts/check.sh

soak:
	@scripts/soak.sh $(ARGS)

bites:
	@scripts/bites.sh $(ARGS)

lint:
	@scripts/lint.sh

bench:
	@scripts/bench.sh $(ARGS)

bench-peers:
	@scripts/bench-peers.sh $(ARGS)

bench-report:
	@scripts/bench-report.sh $(ARGS)

install:
	@scripts/install.sh
