"""`python -m erasekit.cli`."""

from erasekit.cli import main

raise SystemExit(main())
