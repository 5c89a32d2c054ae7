# The two commands. `python dev.py demo` and `python dev.py test` do the same where there is no make.
PYTHON ?= python3
ARGS ?=

.PHONY: demo long-documents test test-install
demo:
	$(PYTHON) dev.py demo $(ARGS)

long-documents:
	$(PYTHON) dev.py demo long-documents $(ARGS)

test:
	$(PYTHON) dev.py test $(ARGS)

test-install:
	$(PYTHON) dev.py test-install $(ARGS)
