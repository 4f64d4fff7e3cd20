"""``python -m nestify.cli``, for a checkout that is not installed."""

from nestify.cli.app import main

main()
