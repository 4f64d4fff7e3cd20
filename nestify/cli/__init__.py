"""The command line: ``nestify plan | inspect | export | verify | targets``, one command a file.

Results go to stdout, progress and messages to stderr; torch is imported inside the commands, so
that ``--help`` answers at once.

Imports: everything. Start reading: ``app``, then ``plan``.
"""

from nestify.cli.app import app, main

__all__ = ["app", "main"]
