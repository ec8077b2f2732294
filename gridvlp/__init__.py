"""Grid-VLP: vision-language pre-training on frozen grid features (Yan et al., 2021)."""

__version__ = "0.1.0"
