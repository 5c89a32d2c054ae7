"""``python -m modelyard`` is the same as ``modelyard``."""

from modelyard.cli.main import main

raise SystemExit(main())
