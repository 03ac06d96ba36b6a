"""How the emoji world's weights came to be: `python -m erasekit.worlds.emoji.train STAGE --work FOLDER`.

Stages, in order: `drawings`, `vae`, `text`, `denoiser`, `judge`, `assemble`, `card`. Each is seeded, prints its loss, saves a
checkpoint every few hundred steps and continues from it when started again. The data of step n depends on (seed, stage, n)
alone, so a resumed run sees what an uninterrupted one would. `unpack` lays the shipped weights out as a work folder, and
`--onward` trains a denoiser or judge further from there.
"""
