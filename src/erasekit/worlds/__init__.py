"""Embedded models: small, real, offline worlds to try, test and measure erasure on."""
