"""The models that Redraft trains and decodes, all behind one protocol: core.models.denoiser.Denoiser."""
