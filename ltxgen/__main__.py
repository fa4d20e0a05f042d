"""`python -m ltxgen`, as `ltxgen`."""

from ltxgen.cli import main

main()
