"""What methods that train share: one loop, noisy latents, losses, and trained tensors beside a frozen model.

A method is a loss, a choice of parameters and a page: see `methods/esd.py`.
"""
