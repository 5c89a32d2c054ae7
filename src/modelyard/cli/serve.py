"""``modelyard serve RUN|BUNDLE``: a page and an HTTP service, on this machine only unless told otherwise."""

from __future__ import annotations

import argparse
from pathlib import Path

from modelyard.cli.main import language
from modelyard.cli.messages import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to serve, and where."""
    parser.add_argument("folder", type=Path, metavar="RUN|BUNDLE", help="folder of an exported run, or a bundle")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (this machine only if not given)")
    parser.add_argument("--port", type=int, default=8000, help="port (8000 if not given)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped."""
    import json
    import sys
    import webbrowser

    from modelyard.workflow.stages import serve

    stream = sys.stderr if arguments.json else sys.stdout

    def ready(url: str) -> None:
        print(say("serving", language(), name=arguments.folder, url=url), file=stream, flush=True)
        if arguments.json:
            print(json.dumps({"url": url}), flush=True)
        if arguments.open:
            webbrowser.open(url)

    serve(arguments.folder, host=arguments.host, port=arguments.port, on_ready=ready)
    return 0
