# make demo: an edit on the emulated device, or on the card where there is one.  make test: the tests.
# Both set up .venv first; that takes minutes once. Choose another interpreter with `make PYTHON=...`.

# CPython 3.12 or 3.10, for which there is a ttnn wheel, on the path or under pyenv; else any from 3.10 on.
PYTHON ?= $(shell for python in python3.12 $$HOME/.pyenv/versions/3.12*/bin/python python3.10 \
	$$HOME/.pyenv/versions/3.10*/bin/python python3 $$HOME/.pyenv/versions/3.1[1-9]*/bin/python; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)

.PHONY: demo test benchmark
demo: .venv/ready
	.venv/bin/python -m pytest demo

test: .venv/ready
	.venv/bin/python -m pytest -n auto --dist loadgroup

benchmark: .venv/ready
	.venv/bin/python -m reference.benchmark

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python from 3.10 on was found: name one with make PYTHON=..."; exit 1; }
	@echo "Setting up .venv with $(PYTHON) (some minutes) ..."
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test,ttnn]'
	@touch $@
