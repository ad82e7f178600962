"""The model `bitnet` of lm-evaluation-harness, registered there by this import (extra `eval`)."""

from .adapter import BitnetLM

__all__ = ["BitnetLM"]
