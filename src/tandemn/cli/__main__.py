"""`python -m tandemn.cli`: the same as `tandemn`, where that is not on PATH."""

from tandemn.cli.app import main

main()
