"""The code behind `Guidance` ops, one file a kind: `attach(pipe, op, scale)` puts it on and returns what takes it off."""
