"""`python -m erasekit`."""

from erasekit.cli import main

raise SystemExit(main())
