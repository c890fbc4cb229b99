"""Conditioning, re-styling, the denoiser and its bundle: tensors in, tensors out."""
